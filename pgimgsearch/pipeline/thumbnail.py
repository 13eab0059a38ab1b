"""Small pictures inside a page, so that the page can be sent to someone."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps


def data_address(path: Path, side: int = 320) -> str:
    """A picture as a ``data:`` address of a JPEG of at most ``side`` pixels; grey where it cannot be read."""
    out = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))
            small = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):  # moved or broken meanwhile: the caption says which
        small = Image.new("RGB", (side, side), "lightgrey")
    small.thumbnail((side, side))
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
