"""JPEG without decoding it: how many segments and scans it has, as each takes time however few bytes it is.

Markers: ITU T.81, sections B.1.1 and B.2.
"""

import re
from collections.abc import Iterator
from itertools import islice

START, SCAN, END = b"\xff\xd8\xff", 0xDA, 0xD9
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
APPLICATIONS = {0xE1, 0xE2}  # of which EXIF and colour profiles are
WITHOUT_LENGTH = {0xD8, *range(0xD0, 0xD8)}
MARKER = re.compile(b"\xff[\xc0-\xcf\xd8-\xfe]")  # but for stuffed bytes, reserved ones, and those that restart a scan


def segments(data: bytes, enough: int) -> int:
    """How many segments stand before the first scan, up to ``enough``; 0 for what is no JPEG."""
    return sum(1 for _ in islice(_markers(data, to=SCAN), enough))


def scans(data: bytes, enough: int) -> int:
    """How many scans are decoded, up to ``enough``; 0 for what is no JPEG. What follows the image does not count."""
    parts, progressive = 0, False
    for kind, place in _markers(data, to=SCAN):
        if kind in FRAMES:
            parts, progressive = data[place + 7] if place + 7 < len(data) else 0, kind in PROGRESSIVE
        elif kind == SCAN and not progressive and data[place + 2 : place + 3] == bytes([parts]):
            return 1  # it has all of the image
    found = 0
    if data.count(b"\xff\xda") >= enough:
        for kind, _ in _markers(data, to=END):
            found += kind == SCAN
            if found == enough:
                break
    return found


def descriptions(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """How the segments of applications begin, before the first scan, and whether the size of the image came before."""
    sized = False
    for kind, place in _markers(data, to=SCAN):
        sized = sized or kind in FRAMES
        if kind in APPLICATIONS:
            yield data[place + 2 : place + 16], sized


def bytes_behind(data: bytes) -> int:
    """How many bytes follow the first image of a JPEG, as the video of a motion photo."""
    first, progressive = None, False
    for kind, place in _markers(data, to=SCAN):
        first, progressive = place if kind == SCAN else None, progressive or kind in PROGRESSIVE
    if first is None:
        return 0
    if progressive:  # segments between scans may hold any bytes
        end = next((place for kind, place in _markers(data, to=END) if kind == END), 0)
    else:
        end = data.find(b"\xff\xd9", first) + 2  # which pixels never hold
    return len(data[end:].rstrip(b"\0 \r\n")) if end > 2 else 0


def pixels(data: bytes) -> int:
    """Width times height as the first frame says; 0 for what is no JPEG."""
    for kind, place in _markers(data, to=SCAN):
        if kind in FRAMES:
            height, width = (int.from_bytes(data[start : start + 2], "big") for start in (place + 3, place + 5))
            return height * width
    return 0


def _markers(data: bytes, *, to: int) -> Iterator[tuple[int, int]]:
    """The markers of the first image and where their segments begin, until one of a kind."""
    place = 2 if data.startswith(START) else len(data)
    while found := MARKER.search(data, place):
        kind, place = data[found.start() + 1], found.end()
        yield kind, place
        if kind in {to, END}:
            return
        if kind not in WITHOUT_LENGTH:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
