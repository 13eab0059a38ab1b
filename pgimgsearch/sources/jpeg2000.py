"""JPEG 2000 without decoding it: how many tiles an image says to have, as each takes memory of its own."""

import struct

BOXES = b"\0\0\0\x0cjP  "  # the first bytes of a file that is not the codestream alone
START = b"\xff\x4f\xff\x51"  # the marks of a codestream and of its sizes (ISO/IEC 15444-1, A.5.1)
MOST_STARTS = 16  # that are looked at: a file may hold what only looks like one


def most_tiles(data: bytes) -> int:
    """The largest number of tiles that any codestream in a file says to have; 0 for what is none."""
    if not data.startswith((BOXES, START)):
        return 0
    most = place = 0
    for _ in range(MOST_STARTS):
        place = data.find(START, place) + len(START)
        if place < len(START) or len(data) < place + 36:
            break
        right, bottom, _, _, width, height, left, top = struct.unpack_from("!8I", data, place + 4)
        if width and height:
            most = max(most, -(-(right - left) // width) * -(-(bottom - top) // height))
    return most
