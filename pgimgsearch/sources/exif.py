"""What cameras write into images: when, where and with what they were taken.

Tags: Exif 3.0 (CIPA DC-008), sections 4.6.4 to 4.6.7.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from PIL import Image

from pgimgsearch.sources.tiff_tags import most_values

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000  # of a tag
ORIENTATION, MAKE, MODEL, TAKEN, OFFSET = 0x0112, 0x010F, 0x0110, 0x9003, 0x9011
EXIF, GPS = 0x8769, 0x8825  # directories of their own
LONGEST = 200  # characters
SEARCHED = ("taken_at", "camera", "latitude", "longitude")  # what of it is metadata of an image, too


def read_exif(image: Image.Image) -> Image.Exif | None:
    """The EXIF of an image; None where it has none, or where it cannot be read, as the pixels are fine."""
    data = image.info.get("exif") or b""
    if (
        not isinstance(data, bytes)
        or len(data) > MOST_BYTES
        or most_values(data.removeprefix(b"Exif\0\0")) > MOST_VALUES
    ):
        return None
    try:
        return image.getexif()
    except Exception:  # broken EXIF raises whatever its bytes lead the parser to
        return None


def hides_exif(image: Image.Image) -> bool:
    """Whether an image has EXIF that is not read, so that others may show it turned."""
    return bool(image.info.get("exif")) and read_exif(image) is None


def orientation_of(image: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8, or whatever the file says it is; 1 without."""
    exif = read_exif(image)
    return 1 if exif is None else exif.get(ORIENTATION, 1)


def taken(image: Image.Image) -> dict[str, Any]:
    """``taken_at`` (ISO 8601, in UTC where the zone is known), ``camera``, ``latitude``, ``longitude``, as far as told.

    ``tags`` is how many there are of all, where there are any.
    """
    exif = read_exif(image)
    if not exif:
        return {}
    found: dict[str, Any] = {}
    with suppress(Exception):
        own = exif.get_ifd(EXIF)
        found["tags"] = len(exif) + len(own)
        if (when := _time(own.get(TAKEN), own.get(OFFSET))) is not None:
            found["taken_at"] = when
    camera = " ".join(filter(None, (_text(exif.get(tag)) for tag in (MAKE, MODEL))))
    if camera:
        found["camera"] = camera[:LONGEST]
    with suppress(Exception):
        place = exif.get_ifd(GPS)
        latitude, longitude = _degrees(place, 1, "S", 90), _degrees(place, 3, "W", 180)
        if latitude is not None and longitude is not None and (latitude or longitude):
            found |= {"latitude": latitude, "longitude": longitude}
    return found


def as_metadata(about: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``taken`` is metadata of an image."""
    return {key: about[key] for key in SEARCHED if key in about}


def _text(value: Any) -> str:
    return "".join(letter for letter in str(value) if letter.isprintable()).strip() if isinstance(value, str) else ""


def _time(text: Any, offset: Any) -> str | None:
    when = datetime.strptime(_text(text)[:19], "%Y:%m:%d %H:%M:%S")
    zone = re.fullmatch(r"([+-])(\d\d):(\d\d)", _text(offset))
    if zone is None:
        return when.isoformat(timespec="microseconds")
    minutes = (int(zone[2]) * 60 + int(zone[3])) * (1 if zone[1] == "+" else -1)
    return datetime.fromtimestamp(when.replace(tzinfo=UTC).timestamp() - 60 * minutes, UTC).isoformat(
        timespec="microseconds"
    ).replace("+00:00", "Z")  # fmt: skip


def _degrees(place: Any, tag: int, negative: str, most: int) -> float | None:
    """Degrees of a place: tag says which half of the earth, the next one degrees, minutes and seconds."""
    parts = [float(part) for part in place[tag + 1]]
    value = parts[0] + parts[1] / 60 + (parts[2] if len(parts) > 2 else 0) / 3600
    signed = -value if _text(place.get(tag)).upper().startswith(negative) else value
    return round(signed, 7) if 0 <= value <= most else None
