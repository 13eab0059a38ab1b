"""Four drawn images whose vectors are stored with a model: what they become later tells whether it has drifted."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.models.encoder import Encoder, unit

# Cosine distance that rounding explains, by the precision of the run.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-3, "fp16": 5e-3, "int8": 1e-2}


def images() -> list[Image.Image]:
    """The four: made of whole numbers alone, so that they are the same everywhere, and each of another shape."""
    return [_rings(320, 240), _patches(240, 320), _stripes(256, 256), _grain(400, 180)]


def vectors(encoder: Encoder, output: str) -> NDArray[np.float32]:
    """(4, dim) float32, normalised; the bits of a hash as 0 and 1, scaled alike."""
    prepared = [encoder.prepare(picture) for picture in images()]
    return unit(encoder.embed(prepared)[output].astype(np.float32))


def drift(stored: NDArray[np.float32], now: NDArray[np.float32]) -> float:
    """The largest cosine distance between two sets of canary vectors."""
    if stored.shape != now.shape:
        return 2.0
    distance = 1 - (unit(stored) * unit(now)).sum(1)
    return float(np.nanmax(distance)) if np.isfinite(distance).all() else 2.0


def _grid(width: int, height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = np.mgrid[0:height, 0:width]
    return columns.astype(np.int64), rows.astype(np.int64)


def _noise(cells: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A grey level for each cell number: two steps of a linear congruential generator (Numerical Recipes)."""
    state = (cells * 2654435761 + seed) % 2**32
    for _ in range(2):
        state = (state * 1664525 + 1013904223) % 2**32
        state ^= state >> 13
    return state >> 24 & 255


def _image(*channels: NDArray[np.int64]) -> Image.Image:
    return Image.fromarray((np.stack(channels, axis=-1) % 256).astype(np.uint8))


def _rings(width: int, height: int) -> Image.Image:
    """Rings over a mosaic."""
    x, y = _grid(width, height)
    ring = ((x - 100) ** 2 + (y - 130) ** 2) // 900 % 2 * 90
    mosaic = _noise(x // 32 + 100 * (y // 32), 1)
    return _image(mosaic * 5 // 8 + ring, mosaic * 3 // 8 + ring // 2 + 30, 200 - x // 2)


def _patches(width: int, height: int) -> Image.Image:
    """Plain colours side by side."""
    x, y = _grid(width, height)
    cell = x // 40 + 6 * (y // 40)
    return _image(_noise(cell, 2), _noise(cell, 3), _noise(cell, 4))


def _stripes(width: int, height: int) -> Image.Image:
    """Slanting stripes, of a width of their own in each band."""
    x, y = _grid(width, height)
    band = _noise(y // 50, 5) % 40 + 20
    wave = (x + y // 2) // band % 2 * 150
    return _image(wave + 20, wave * 4 // 3 + 30, 40 + y * 3 // 4)


def _grain(width: int, height: int) -> Image.Image:
    """A coarse grain over a slope."""
    x, y = _grid(width, height)
    noise = _noise(x // 12 + 100 * (y // 12), 6)
    return _image(noise // 2 + x * 100 // width, noise // 3 + 60, noise // 2 + y // 2)
