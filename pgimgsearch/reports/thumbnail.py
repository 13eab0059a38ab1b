"""Small images inside a page, so that the page can be sent to someone."""

import base64
import io
from pathlib import Path

from PIL import Image

from pgimgsearch.sources.open_image import open_thumbnail


def thumbnail(location: str | Path, side: int = 320) -> Image.Image:
    """A small RGB image of at most ``side`` pixels; grey where it cannot be read."""
    try:
        return open_thumbnail(str(location), side)
    except Exception:  # moved or broken meanwhile, in whatever way its store reports it; the caption names the file
        return Image.new("RGB", (side, side), "lightgrey")


def data_url(location: str | Path, side: int = 320) -> str:
    """``thumbnail`` as a ``data:`` URL of a JPEG."""
    out = io.BytesIO()
    thumbnail(location, side).save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
