"""Small images inside a page, so that the page can be sent to someone."""

import base64
import io
from pathlib import Path

from PIL import Image

from pgimgsearch.sources.open_image import open_thumbnail


def data_url(location: str | Path, side: int = 320) -> str:
    """An image as a ``data:`` URL of a JPEG of at most ``side`` pixels; grey where it cannot be read."""
    out = io.BytesIO()
    try:
        small = open_thumbnail(str(location), side)
    except Exception:  # moved or broken meanwhile, in whatever way its store reports it; the caption names the file
        small = Image.new("RGB", (side, side), "lightgrey")
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
