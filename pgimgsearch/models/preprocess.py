"""Images into tensors, by the arithmetic of torchvision's eval transforms but without torch."""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.models.spec import Preprocess

MOST_TIMES = 16  # as long as what is cut out of it, before only that is scaled
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def to_array(image: Image.Image, how: Preprocess) -> NDArray[np.float32]:
    """Resize, crop and standardise an upright RGB image. Returns (3, height, width) float32."""
    if how.whole:
        bands = resized_crop(image, how).split()
        standard = [np.take(grey, np.asarray(band)) for grey, band in zip(_grey_levels(how), bands, strict=True)]
    else:
        fractions = [np.asarray(resized_crop(band.convert("F"), how)) for band in image.split()]
        standard = [_standard(values, *moments) for values, *moments in zip(fractions, how.mean, how.std, strict=True)]
    return np.stack(standard)


@cache
def _grey_levels(how: Preprocess) -> list[NDArray[np.float32]]:
    """What each of the 256 grey levels becomes, colour by colour: a look-up is three times as fast as arithmetic."""
    levels = np.arange(256, dtype=np.float32)
    return [_standard(levels, mean, std) for mean, std in zip(how.mean, how.std, strict=True)]


def _standard(values: NDArray[np.float32], mean: float, std: float) -> NDArray[np.float32]:
    return (values / np.float32(255.0) - np.float32(mean)) / np.float32(std)


def resized_crop(image: Image.Image, how: Preprocess) -> Image.Image:
    """Scale and cut; of an image that is far longer than it is wide, what is cut away is not scaled."""
    target = resized_size(image, how)
    height, width = how.size
    if target[0] > MOST_TIMES * width or target[1] > MOST_TIMES * height:
        whole = round if how.centre == "round" else math.floor
        left, top = (max(0, whole((one - cut) / 2.0)) for one, cut in zip(target, (width, height), strict=True))
        kept = min(target[0], width), min(target[1], height)
        x, y = image.width / target[0], image.height / target[1]  # pixels of the image for one of the result
        box = (left * x, top * y, min(image.width, (left + kept[0]) * x), min(image.height, (top + kept[1]) * y))
        return center_crop(image.resize(kept, RESAMPLING[how.interpolation], box), how)
    return center_crop(image if image.size == target else image.resize(target, RESAMPLING[how.interpolation]), how)


def resized_size(image: Image.Image, how: Preprocess) -> tuple[int, int]:
    """Width and height where the short side is scaled to ``resize_to``, or both so that the height is that."""
    width, height = image.size
    if how.resize == "squash":
        return how.resize_to * how.size[1] // how.size[0], how.resize_to
    if width <= height:
        return how.resize_to, max(1, int(how.resize_to * height / width))
    return max(1, int(how.resize_to * width / height)), how.resize_to


def center_crop(image: Image.Image, how: Preprocess) -> Image.Image:
    """Cut ``size`` out of the middle; what lies outside the image is black."""
    height, width = how.size
    whole = round if how.centre == "round" else math.floor
    left, top = whole((image.width - width) / 2.0), whole((image.height - height) / 2.0)
    if (left, top) == (0, 0) and image.size == (width, height):
        return image
    return image.crop((left, top, left + width, top + height))
