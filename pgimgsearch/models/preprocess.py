"""Pictures into tensors, by the arithmetic of torchvision's eval transforms but without torch."""

import math

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
    """Resize, crop and standardise an upright RGB picture. Returns (3, height, width) float32."""
    if how.whole:
        pixels = np.asarray(center_crop(resize(image, how), how), dtype=np.float32) / 255.0
    else:
        bands = [band.convert("F") for band in image.split()]
        pixels = np.stack([np.asarray(center_crop(resize(band, how), how)) for band in bands], axis=-1) / 255.0
    standard = (pixels - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)
    return np.ascontiguousarray(standard.transpose(2, 0, 1), dtype=np.float32)


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
    """Cut ``size`` out of the middle; what lies outside the picture is black."""
    height, width = how.size
    whole = round if how.centre == "round" else math.floor
    left, top = whole((image.width - width) / 2.0), whole((image.height - height) / 2.0)
    if (left, top) == (0, 0) and image.size == (width, height):
        return image
    return image.crop((left, top, left + width, top + height))
