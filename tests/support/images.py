"""Images that tests make."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photo_image(seed: int = 0, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Smooth noise from a seed: detail enough for every model."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (96, 72), **save: Any) -> Path:
    """Write such an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photo_image(seed, size).save(path, **save)
    return path


def many(folder: Path, files: int, twins: int) -> Path:
    """A folder of so many photos, copies of the first ``twins``, and one file that is broken."""
    for number in range(files):
        photo(folder / f"{number:04}.png", seed=number)
    for number in range(twins):
        (folder / f"twin-{number:04}.png").write_bytes((folder / f"{number:04}.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"broken")
    return folder
