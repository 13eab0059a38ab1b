"""Small pictures inside a page, so that the page can be sent to someone."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from pgimgsearch.sources import read as fetch

MOST_BYTES = 256 << 20


def data_address(location: str | Path, side: int = 320) -> str:
    """A picture as a ``data:`` address of a JPEG of at most ``side`` pixels; grey where it cannot be read."""
    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(fetch.read(str(location), MOST_BYTES))) as image:
            image.draft("RGB", (side, side))
            small = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # moved or broken meanwhile, in whatever way its store tells: the caption says which
        small = Image.new("RGB", (side, side), "lightgrey")
    small.thumbnail((side, side))
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
