"""Whether a file with a camera's metadata is as the camera wrote it, or a conversion that kept them."""

from collections.abc import Mapping
from typing import Any

HEADER = 1 << 16  # bytes in which the boxes of HEIF describe the image
FIRST_HEIF = "2017"  # the year in which a camera first wrote one
BY_CAMERAS = {"JPEG", "MPO", "HEIF", "TIFF"}


def origin(kind: str, data: bytes, found: Mapping[str, Any]) -> int:
    """2 where a file is built as cameras build it, 1 where its format is theirs, 0 where it is not; of EXIF ``found``.

    Cameras begin a JPEG with EXIF (DCF 2.0, section 3.5), programs with JFIF. Cameras store HEIF in tiles or with
    thumbnails (ISO/IEC 23008-12, 6.6.2.3 and 6.4.4), encoders neither.
    """
    if kind not in BY_CAMERAS or "camera" not in found:
        return 0
    if kind in {"JPEG", "MPO"}:
        return 2 if data[2:4] == b"\xff\xe1" and data[6:10] == b"Exif" else 1
    if kind == "HEIF":
        if found.get("taken_at", FIRST_HEIF) < FIRST_HEIF:
            return 0
        return 2 if any(box in data[:HEADER] for box in (b"grid", b"thmb")) else 0
    return 1
