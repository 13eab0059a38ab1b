"""Images into tensors, by the arithmetic of torchvision's eval transforms but without torch."""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.models.spec import Preprocess

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def to_array(image: Image.Image, how: Preprocess) -> NDArray[np.float32]:
    """Resize, crop and standardise an upright RGB image. Returns (3, height, width) float32."""
    if how.whole:
        bands = center_crop(resize(image, how), how).split()
        standard = [np.take(grey, np.asarray(band)) for grey, band in zip(_grey_levels(how), bands, strict=True)]
    else:
        fractions = [np.asarray(center_crop(resize(band.convert("F"), how), how)) for band in image.split()]
        standard = [_standard(values, *moments) for values, *moments in zip(fractions, how.mean, how.std, strict=True)]
    return np.stack(standard)


@cache
def _grey_levels(how: Preprocess) -> list[NDArray[np.float32]]:
    """What each of the 256 grey levels becomes, colour by colour: a look-up is three times as fast as arithmetic."""
    levels = np.arange(256, dtype=np.float32)
    return [_standard(levels, mean, std) for mean, std in zip(how.mean, how.std, strict=True)]


def _standard(values: NDArray[np.float32], mean: float, std: float) -> NDArray[np.float32]:
    return (values / np.float32(255.0) - np.float32(mean)) / np.float32(std)


def resize(image: Image.Image, how: Preprocess) -> Image.Image:
    """Scale the short side to ``resize_to``, or squash so that the height is that."""
    width, height = image.size
    if how.resize == "squash":
        target = (how.resize_to * how.size[1] // how.size[0], how.resize_to)
    elif width <= height:
        target = (how.resize_to, max(1, int(how.resize_to * height / width)))
    else:
        target = (max(1, int(how.resize_to * width / height)), how.resize_to)
    return image if image.size == target else image.resize(target, RESAMPLING[how.interpolation])


def center_crop(image: Image.Image, how: Preprocess) -> Image.Image:
    """Cut ``size`` out of the middle; what lies outside the image is black."""
    height, width = how.size
    whole = round if how.centre == "round" else math.floor
    left, top = whole((image.width - width) / 2.0), whole((image.height - height) / 2.0)
    if (left, top) == (0, 0) and image.size == (width, height):
        return image
    return image.crop((left, top, left + width, top + height))
