"""A picture or a text from outside, as a query."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import SourceError
from pgimgsearch.models.encoder import SkippedPicture, unit
from pgimgsearch.pipeline import fetch, register
from pgimgsearch.pipeline.decode import decode, limit_pixels, register_formats
from pgimgsearch.pipeline.run import Options


def embed_picture(connection: Connection, model: StoredModel, path: Path, device: str) -> str:
    """The vector of a picture, or its hash, in the text form that Postgres reads."""
    options = Options()
    limit_pixels(options.max_pixels)
    register_formats()
    loaded = register.open_model(connection, model.name, weights=None, device=device)
    try:
        image, _ = decode(fetch.read(str(path), options.max_bytes), options.max_pixels)
        vector = loaded.encoder.embed([loaded.encoder.prepare(image)])
    except SkippedPicture as why:
        raise SourceError(f"{path} has no useful vector: {why}", hint="try another model, for example palette") from why
    except Exception as error:  # broken bytes raise anything
        raise SourceError(f"cannot read {path}: {error}", hint="give a picture that an image viewer opens") from error
    if model.storage == "bit":
        return "".join(map(str, vector[0].tolist()))
    return _literal(unit(vector)[0] if model.normalize else vector[0])


def embed_text(connection: Connection, model: StoredModel, text: str, device: str) -> str:
    """The vector of a text, in the form that Postgres reads."""
    loaded = register.open_model(connection, model.name, weights=None, device=device)
    return _literal(loaded.encoder.embed_text([text])[0])


def _literal(vector: NDArray[np.float32]) -> str:
    return "[" + ",".join(map(repr, vector.astype(float).tolist())) + "]"
