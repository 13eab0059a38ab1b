"""Transparent images, on a ground on which what is drawn can be seen: white, or black for what is white."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

STRIP = 1 << 20  # pixels
VISIBLE = 16  # grey levels by which what is drawn differs from white at least, on average


def is_opaque(image: Image.Image) -> bool:
    """Whether nothing of an RGBA or LA image can be seen through."""
    return image.getchannel("A").getextrema() == (255, 255)


def on_ground(image: Image.Image) -> Image.Image:
    """An RGBA image in RGB, on the ground that keeps its drawing visible."""
    flat = Image.new("RGB", image.size)
    color = "black" if _is_white(image) else "white"
    for top, strip in _strips(image):  # as each step takes as much memory again
        ground = Image.new("RGBA", strip.size, color)
        flat.paste(Image.alpha_composite(ground, strip).convert("RGB"), (0, top))
    return flat


def _is_white(image: Image.Image) -> bool:
    """Whether what is drawn can hardly be told from white, weighted by how much of it covers the ground."""
    contrast = covered = 0.0
    for _, strip in _strips(image):
        alpha = np.asarray(strip.getchannel("A"), np.float32)
        grey = np.asarray(strip.convert("L"), np.float32)
        contrast += float(((255 - grey) * alpha).sum(dtype=np.float64))
        covered += float(alpha.sum(dtype=np.float64))
    return covered > 0 and contrast / covered < VISIBLE


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))
