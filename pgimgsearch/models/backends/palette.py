"""Palette: how much of each named colour an image shows, as a soft histogram over CIELAB; text by colour names."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models.backends import Backend
from pgimgsearch.models.encoder import Placement, unit
from pgimgsearch.models.fingerprint import digest
from pgimgsearch.models.runtime.weightless import WeightlessEncoder
from pgimgsearch.models.spec import ModelSpec

BACKEND = Backend(package="numpy", has_weights=False)

# sRGB anchors; the names are those people use for products, and their order is the vector's.
COLOURS = {
    "black": (10, 10, 10), "charcoal": (60, 62, 66), "grey": (128, 128, 128), "silver": (190, 192, 195),
    "white": (250, 250, 250), "cream": (245, 238, 210), "beige": (215, 195, 160), "tan": (190, 150, 105),
    "brown": (115, 70, 35), "maroon": (110, 15, 30), "red": (215, 25, 30), "coral": (250, 125, 95),
    "orange": (250, 140, 20), "gold": (205, 165, 45), "yellow": (250, 225, 40), "khaki": (155, 150, 95),
    "olive": (105, 110, 35), "lime": (165, 225, 45), "green": (35, 150, 60), "mint": (165, 230, 195),
    "teal": (15, 120, 120), "turquoise": (60, 205, 200), "sky": (135, 195, 240), "blue": (30, 90, 215),
    "navy": (20, 30, 90), "indigo": (75, 30, 150), "purple": (130, 45, 165), "lavender": (190, 165, 230),
    "magenta": (215, 35, 150), "pink": (250, 170, 195), "rose": (235, 90, 125), "peach": (250, 205, 170),
}  # fmt: skip
SYNONYMS = {"gray": "grey", "violet": "purple", "cyan": "turquoise", "aqua": "turquoise", "burgundy": "maroon",
            "golden": "gold", "ivory": "cream", "crimson": "red", "azure": "sky", "mauve": "lavender",
            "fuchsia": "magenta", "camel": "tan", "salmon": "coral", "chocolate": "brown"}  # fmt: skip
SIDE = 64
SOFTNESS = 12.0  # CIELAB units within which a colour is shared between its neighbours


def to_lab(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """sRGB 0..255 (..., 3) to CIELAB under D65 (IEC 61966-2-1, CIE 15)."""
    value = np.asarray(rgb, dtype=np.float32) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


ANCHORS = to_lab(np.array(list(COLOURS.values())))


def shares(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much each colour (n, 3) belongs to each name: (n, 32), rows sum to one."""
    squared = ((lab[:, None, :] - ANCHORS[None]) ** 2).sum(-1)
    weights = np.exp(-(squared - squared.min(1, keepdims=True)) / (2 * SOFTNESS**2))
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)


NAMED = dict(zip(COLOURS, shares(ANCHORS), strict=True))


class Palette(WeightlessEncoder):
    """An Encoder of colours. Square roots make the cosine of two histograms their overlap (Bhattacharyya)."""

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """The roots of an image's histogram: (32,)."""
        small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(np.sqrt(shares(to_lab(np.asarray(small).reshape(-1, 3))).mean(0)), dtype=np.float32)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The colours a text names, in equal parts: (n, 32), normalised. Raises ModelError where it names none."""
        return unit(np.sqrt(np.stack([_histogram(text) for text in texts])))


def _histogram(text: str) -> NDArray[np.float32]:
    words = [SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+", text.lower())]
    named = [NAMED[word] for word in words if word in NAMED]
    if not named:
        raise ModelError(
            f'"{text[:100]}" names no colour, and palette knows nothing else',
            hint=f"colours: {', '.join(COLOURS)}; for other words use a model like clip-vit-b-32",
        )
    return np.asarray(np.mean(named, axis=0))


def load(spec: ModelSpec, placement: Placement) -> Palette:  # noqa: ARG001  (NumPy needs no device)
    """Nothing to load."""
    anchors = digest([("anchors", ANCHORS.tobytes())])
    return Palette(spec, {"side": SIDE, "softness": SOFTNESS}, f"palette-1 {anchors}")
