"""What an image shows, as 16 bytes: all its frames and pages, in all bits that it has, and what its colours mean."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from blake3 import blake3
from PIL import Image

from pgimgsearch.sources.tiff_tags import BITS

STRIP = 1 << 20  # pixels that are hashed at once
MOST_FRAMES = 1000
BITMAPS = {b"P1", b"P4"}
PPM_HEADER = 4096  # bytes, of which comments may be any
SIXTEEN = {"I;16", "I;16L", "I;16B", "I;16N"}

Shown = Callable[[Image.Image], tuple[Image.Image, bytes]]  # the upright pixels of a frame, and what its profile means


def pixel_hash(
    image: Image.Image | None, first: tuple[Image.Image, bytes], shown: Shown, most_pixels: int
) -> bytes | None:
    """BLAKE3 of all that is shown, the same on every host: equal only for images that nobody can tell apart.

    ``first`` is what ``shown`` made of the frame that the image stands at, which is given where it has more. None where
    that is not known: for more than 1,000 frames or ``most_pixels`` pixels of them, or
    broken ones.
    """
    digest = blake3()
    _add(digest, *first)
    if image is None:
        return digest.digest(16)
    pixels = first[0].width * first[0].height
    start = image.tell()
    digest.update(_times(start, image))
    try:
        for number in range(MOST_FRAMES + 1):
            if number == start:
                continue
            image.seek(number)
            pixels += image.width * image.height
            if number == MOST_FRAMES or pixels > most_pixels:
                return None
            digest.update(_times(number, image))
            image.load()
            _add(digest, *shown(image))
    except EOFError:  # as Pillow ends a sequence
        return digest.digest(16)
    except Exception:  # broken frames raise anything
        return None
    return None


def _times(number: int, image: Image.Image) -> bytes:
    """Which frame it is, and for how long it is shown."""
    return json.dumps([number, image.info.get("duration"), image.info.get("loop")], default=str).encode()


def _add(digest: Any, frame: Image.Image, meaning: bytes) -> None:
    digest.update(json.dumps([_depth(frame), frame.width, frame.height, len(meaning)]).encode() + meaning)
    rows = max(1, STRIP // max(1, frame.width))
    for top in range(0, frame.height, rows):  # so that the pixels are not there twice
        whole = rows >= frame.height
        strip = frame if whole else frame.crop((0, top, frame.width, min(frame.height, top + rows)))
        digest.update(np.asarray(strip).astype("<u2").tobytes() if frame.mode in SIXTEEN else strip.tobytes())


def _depth(frame: Image.Image) -> str:
    return "I;16" if frame.mode in SIXTEEN else frame.mode


def bits_of(frame: Image.Image) -> int:
    """Bits of a channel as decoded."""
    return 16 if frame.mode in SIXTEEN else 32 if frame.mode in {"I", "F"} else 8


def loses_bits(image: Image.Image, depth: int, data: bytes) -> bool:
    """Whether the file holds more bits than were decoded: identity then rests on its bytes alone.

    ``depth`` is that of a PNG, 8 for others.
    """
    if image.mode in SIXTEEN or image.mode in {"I", "F"}:
        return False
    bits: Any = (
        getattr(image, "tag_v2", {}).get(BITS, 8) if image.format == "TIFF" else image.info.get("bit_depth", depth)
    )
    most = max(bits) if isinstance(bits, tuple) and bits else bits
    return (isinstance(most, int) and most > 8) or _is_deep(image.format, data)


def _is_deep(kind: str | None, data: bytes) -> bool:
    """By the header of a format whose decoder does not tell."""
    if kind == "AVIF":  # ISO/IEC 23000-22 by way of AV1-ISOBMFF, section 2.3.3: high_bitdepth
        place = data.find(b"av1C")
        return place > 0 and len(data) > place + 6 and bool(data[place + 6] & 0x40)
    if kind == "JPEG2000":
        place = data.find(b"\xff\x51")  # ISO/IEC 15444-1, A.5.1: Ssiz of the first component
        return place > 0 and len(data) > place + 40 and (data[place + 40] & 0x7F) + 1 > 8
    if kind == "PPM" and data[:2] not in BITMAPS:
        words = b" ".join(line.partition(b"#")[0] for line in data[:PPM_HEADER].split(b"\n")).split(None, 4)
        return len(words) < 4 or not words[3].isdigit() or int(words[3][:9]) > 255
    return kind == "SGI" and data[3:4] == b"\2"
