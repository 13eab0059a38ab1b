"""A picture or a text from outside, as a query."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.errors import SourceError
from pgimgsearch.models.encoder import SkippedPicture
from pgimgsearch.pipeline import fetch
from pgimgsearch.pipeline.decode import decode, limit_pixels, register_formats
from pgimgsearch.pipeline.loaded import LoadedModel
from pgimgsearch.pipeline.run import Options


def embed_picture(model: LoadedModel, path: Path) -> str:
    """The vector of a picture, or its hash, in the text form that Postgres reads."""
    options = Options()
    limit_pixels(options.max_pixels)
    register_formats()
    try:
        image, _ = decode(fetch.read(str(path), options.max_bytes), options.max_pixels)
        vector = model.vectors(model.encoder.embed([model.encoder.prepare(image)]))[0]
    except SkippedPicture as why:
        raise SourceError(f"{path} has no useful vector: {why}", hint="try another model, for example palette") from why
    except Exception as error:  # broken bytes raise anything
        raise SourceError(f"cannot read {path}: {error}", hint="give a picture that an image viewer opens") from error
    return "".join(map(str, vector.tolist())) if model.stored.storage == "bit" else literal(vector)


def literal(vector: NDArray[np.float32]) -> str:
    """A vector in the form that Postgres reads."""
    return "[" + ",".join(map(repr, vector.astype(float).tolist())) + "]"
