"""Whether two files show the same picture, but for size and compression: nothing differs in any place."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

COMPARED = 2048  # pixels of the longer side, at most
LEAST = 640  # and at least: of less, small print cannot be told apart
BLOCK = 8  # pixels
SOFT = 0.6  # pixels of blur, by which ways of resizing differ
# Levels in any block: of brightness and colours on average, and of brightness in its pixels. Measured: JPEG of quality
# 60 has up to 8 and 6, at a smaller size 6 and 10; a digit on an invoice 2 to 10 and 22 to 28, a shift by a pixel 60.
MOST_MEAN, MOST_SPREAD = 9.0, 11.0
MOST_STRETCH = 0.01  # of the proportions
ENLARGED = 2.0  # grey levels by which an image differs from a smaller one, enlarged, if it holds more than that
SHARP = 0.6  # of what one loses at half its size the other must lose, too
PART, PLACES = 1024, ((0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1))  # pixels of a side, and where: shares of what is left


def difference(copy: Image.Image, keeper: Image.Image) -> str | None:
    """Why a copy is not the keeper's picture, at most at its size, for people; None where it is. Both in RGB."""
    width, height = min(copy.width, keeper.width), min(copy.height, keeper.height)
    if abs(copy.width * keeper.height / (copy.height * keeper.width) - 1) > MOST_STRETCH:
        return "it has other proportions"
    if max(width, height) < LEAST:
        return "one of them is too small to tell"
    scale = min(1.0, COMPARED / max(width, height))
    size = max(BLOCK, round(width * scale)), max(BLOCK, round(height * scale))
    blocks = _blocks(_small(copy, size) - _small(keeper, size))
    average = np.abs(blocks.mean(axis=(1, 3))).max()
    spread = np.sqrt((blocks[..., 0] ** 2).mean(axis=(1, 3))).max()
    if average > MOST_MEAN or spread > MOST_SPREAD:
        return "it differs in places"
    pixels, kept = copy.width * copy.height, keeper.width * keeper.height
    if pixels > kept:
        return "it has more pixels than its keeper"
    if pixels == kept and _sharpness(keeper) < SHARP * _sharpness(copy):
        return "it is sharper than its keeper"
    if pixels < kept and _is_enlarged(keeper, min(copy.width, keeper.width - 1)):
        return "its keeper is an enlarged copy"
    return None


def _is_enlarged(image: Image.Image, width: int) -> bool:
    """Whether an image holds no more than it would at a smaller width; looked at in a few places where it is large."""
    return max(_lost(part, width / image.width) for part in _parts(image)) < ENLARGED


def _sharpness(image: Image.Image) -> float:
    return max(_lost(part, 0.5) for part in _parts(image))


def _parts(image: Image.Image) -> Iterator[Image.Image]:
    for x, y in PLACES:
        left, top = (round(max(0, length - PART) * share) for length, share in ((image.width, x), (image.height, y)))
        yield image.crop((left, top, min(left + PART, image.width), min(top + PART, image.height)))


def _lost(image: Image.Image, scale: float) -> float:
    """Grey levels by which an image differs from itself after it was smaller."""
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    again = image.resize(size, Image.Resampling.LANCZOS).resize(image.size, Image.Resampling.BICUBIC)
    rest = np.asarray(image, np.float32) - np.asarray(again, np.float32)
    return float(np.sqrt((rest**2).mean()))


def _small(image: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    how = Image.Resampling.BOX if image.width > size[0] else Image.Resampling.BICUBIC
    softened = image.resize(size, how).filter(ImageFilter.GaussianBlur(SOFT))
    return np.asarray(softened.convert("YCbCr"), np.float32)


def _blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, BLOCK, columns, BLOCK, 3); the last ones overlap those before them."""
    rows, columns = ([*range(0, length - BLOCK, BLOCK), length - BLOCK] for length in values.shape[:2])
    places = np.add.outer(rows, np.arange(BLOCK)), np.add.outer(columns, np.arange(BLOCK))
    return values[places[0].ravel()][:, places[1].ravel()].reshape(len(rows), BLOCK, len(columns), BLOCK, 3)
