"""More than eight bits: whole and floating numbers as grey of eight bits, by what they mean."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRIP = 1 << 20  # pixels that are looked at at once
SAMPLE = 1 << 20  # values by which the range of an image is known
OUTLIERS = 0.001  # of the values, at each end
DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras, scanners and microscopes, in two bytes


def eight_bits(image: Image.Image, white: float | None = None) -> Image.Image:
    """Grey values of 16 or 32 bits in 8. ``white`` is the value that the file says to be white.

    Whole numbers from 0 on use as many bits as the largest of them: 8, 10, 12, 14 or 16, or fewer. Floating ones go
    from 0 to 1 where all but outliers do. Any others have the range that they use, without outliers and infinities.
    """
    low, high = _range(image)
    if image.mode == "F" or low < 0 or high > 65535:
        bottom, top = _usual_range(image)
        if image.mode == "F" and bottom >= 0 and top <= 1:
            bottom, top = 0.0, 1.0
    else:
        bottom, top = 0.0, _white(high)
    if white is not None and white >= high > 0:
        bottom, top = 0.0, white
    scale = 255 / (top - bottom) if top > bottom else 0.0
    grey = np.empty((image.height, image.width), np.uint8)
    for start, values in _strips(image):
        scaled = np.clip((np.nan_to_num(values, nan=bottom, posinf=top, neginf=bottom) - bottom) * scale, 0, 255)
        grey[start : start + len(values)] = np.rint(scaled)
    return Image.fromarray(grey)


def _white(high: float) -> float:
    """The largest number of as many bits as the largest value needs."""
    needed = max(1, int(high).bit_length())
    return (
        float(2 ** next((bits for bits in DEPTHS if bits >= needed), 16) - 1) if needed > DEPTHS[0] else 2.0**needed - 1
    )


def _range(image: Image.Image) -> tuple[float, float]:
    """The least and the largest finite value."""
    low, high = np.inf, -np.inf
    for _, values in _strips(image):
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if high >= low else (0.0, 0.0)


def _usual_range(image: Image.Image) -> tuple[float, float]:
    """The range of the finite values, but for outliers, by a sample of them."""
    step = max(1, image.width * image.height // SAMPLE)
    parts = [values.ravel()[::step] for _, values in _strips(image)]
    finite = np.concatenate(parts)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 0.0
    bottom, top = np.quantile(finite, [OUTLIERS, 1 - OUTLIERS])
    return (float(bottom), float(top)) if top > bottom else (float(finite.min()), float(finite.max()))


def _strips(image: Image.Image) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The number of the first row, and the values of some rows at a time."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(image.height, top + rows)))
        yield top, np.asarray(part, dtype=np.float64)
