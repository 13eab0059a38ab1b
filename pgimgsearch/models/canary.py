"""Four drawn pictures whose vectors are stored with a model: what they become later tells whether it has drifted."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.models.encoder import Encoder, unit

# Cosine distance that rounding explains, by the precision of the run.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-3, "fp16": 5e-3, "int8": 1e-2}


def pictures() -> list[Image.Image]:
    """The four: made of whole numbers alone, so that they are the same everywhere, and each of another shape."""
    return [_rings(320, 240), _patches(240, 320), _stripes(256, 256), _grain(400, 180)]


def vectors(encoder: Encoder, output: str) -> NDArray[np.float32]:
    """(4, dim) float32, normalised; the bits of a hash as 0 and 1, scaled alike."""
    prepared = [encoder.prepare(picture) for picture in pictures()]
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


def _picture(*channels: NDArray[np.int64]) -> Image.Image:
    return Image.fromarray((np.stack(channels, axis=-1) % 256).astype(np.uint8))


def _rings(width: int, height: int) -> Image.Image:
    x, y = _grid(width, height)
    far = (x - 100) ** 2 + (y - 130) ** 2
    return _picture(255 - far // 250, far // 120, 200 - x // 2)


def _patches(width: int, height: int) -> Image.Image:
    x, y = _grid(width, height)
    cell = x // 40 + 6 * (y // 40)
    return _picture(cell * 97, cell * 57 + 40, cell * 31 + 90)


def _stripes(width: int, height: int) -> Image.Image:
    x, y = _grid(width, height)
    wave = abs((x + 2 * y) % 64 - 32) * 7
    return _picture(wave + 20, 220 - wave // 2, 40 + y * 3 // 4)


def _grain(width: int, height: int) -> Image.Image:
    """A coarse grain from a linear congruential generator (Numerical Recipes), over a slope."""
    x, y = _grid(width, height)
    seeds = (x // 12 + 40 * (y // 12)) * 1664525 + 1013904223
    noise = (seeds * 1664525 + 1013904223) % 2**32 >> 24
    return _picture(noise // 2 + x * 100 // width, noise // 3 + 60, noise // 2 + y // 2)
