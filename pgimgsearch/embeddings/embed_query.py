"""An image from outside, as a query."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pgimgsearch.embeddings.binary_copy import literal
from pgimgsearch.embeddings.loaded_model import LoadedModel, rejection_reason
from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.models.encoder import SkippedImage
from pgimgsearch.sources.open_image import open_image

Crop = Sequence[int]  # x, y, width, height in pixels of the upright image


def embed_image(model: LoadedModel, path: Path, crop: Crop | None = None) -> str:
    """The vector of an image, or its hash, in the text form that Postgres reads."""
    try:
        image = cropped(open_image(str(path)), crop)
        vector = model.vectors(model.encoder.embed([model.encoder.prepare(image)]))[0]
    except UsageError:
        raise
    except SkippedImage as why:
        raise SourceError(f"{path} has no useful vector: {why}", hint="try another model, for example palette") from why
    except Exception as error:  # broken bytes raise anything
        raise SourceError(f"cannot read {path}: {error}", hint="give an image that an image viewer opens") from error
    if (reason := rejection_reason(vector)) is not None:
        raise SourceError(f"{path} has no useful vector: {reason}", hint="try another model")
    return literal(vector, model.stored.storage)


def cropped(image: Image.Image, crop: Crop | None) -> Image.Image:
    """A part of an upright image, or all of it; raises UsageError for a crop that is not inside."""
    if crop is None:
        return image
    left, top, width, height = crop
    inside = min(left, top) >= 0 and left + width <= image.width and top + height <= image.height
    if not inside or min(width, height) < 1:
        raise UsageError(
            f"the crop {left},{top},{width},{height} is not inside the image of {image.width} x {image.height}",
            hint="x, y, width and height, in pixels of the upright image",
        )
    return image.crop((left, top, left + width, top + height))
