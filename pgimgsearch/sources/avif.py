"""AVIF without decoding it: how large its frames are, whatever its header says, and how deep.

Boxes: ISO/IEC 14496-12, section 8.7.5 (chunk offsets) and 8.11.3 (locations of items); sequence headers: AV1 bitstream
specification, section 5.5.
"""

from collections.abc import Iterator

BRANDS = (b"avif", b"avis")
CONTAINERS = {
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"meta": 4,
}  # and the bytes before their boxes
DEEPEST, MOST_PLACES, MOST_UNITS = 8, 1000, 16
SEQUENCE_HEADER = 1


def largest_frame(data: bytes) -> int:
    """The pixels of the largest frame that any of its streams may have; 0 for what is no AVIF."""
    if data[4:8] != b"ftyp" or not any(brand in data[8:64] for brand in BRANDS):
        return 0
    return max((_frame(data, place) for place in _places(data)), default=0)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box."""
    while start + 8 <= end:
        size, kind, head = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        if size == 0:
            size = end - start
        if size < head:
            return
        yield kind, start + head, min(end, start + size)
        start += size


def _places(data: bytes) -> list[int]:
    """Where streams begin: of items, and of the chunks of tracks."""
    found: list[int] = []
    inside = 0  # where the box of data inside of the header begins

    def walk(start: int, end: int, depth: int) -> None:
        nonlocal inside
        for kind, first, last in _boxes(data, start, end):
            if kind in CONTAINERS and depth < DEEPEST:
                walk(first + CONTAINERS[kind], last, depth + 1)
            elif kind == b"iloc":
                found.extend(_items(data[first:last]))
            elif kind == b"idat":
                inside = first
            elif kind in {b"stco", b"co64"}:
                width = 4 if kind == b"stco" else 8
                table = data[first + 8 : last][: width * MOST_PLACES]
                found.extend(
                    int.from_bytes(table[n : n + width], "big") for n in range(0, len(table) - width + 1, width)
                )

    walk(0, len(data), 0)
    return [place for offset in found[:MOST_PLACES] for place in {offset, inside + offset}]


def _items(box: bytes) -> Iterator[int]:
    """The offset of the first extent of each item, from the file's begin or that of the box of data."""
    version, sizes = box[0] if box else 0, int.from_bytes(box[4:6], "big")
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 4 if version == 2 else 2
    place = 6 + wide
    for _ in range(min(MOST_PLACES, int.from_bytes(box[6 : 6 + wide], "big"))):
        place += wide + (2 if version in {1, 2} else 0) + 2
        start = int.from_bytes(box[place : place + base], "big")
        place += base
        extents = int.from_bytes(box[place : place + 2], "big")
        place += 2
        numbered = index if version in {1, 2} else 0
        if place + numbered + offset > len(box):
            return
        yield start + int.from_bytes(box[place + numbered : place + numbered + offset], "big")
        place += extents * (numbered + offset + length)


def _frame(data: bytes, place: int) -> int:
    """The pixels that the first sequence header at a place allows; 0 without one."""
    for _ in range(MOST_UNITS):
        if place >= len(data):
            return 0
        head, place = data[place], place + 1
        place += head >> 2 & 1  # its extension
        size = shift = 0
        while place < len(data) and shift < 35:
            byte, place = data[place], place + 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if head & 0x82 != 2:  # not a unit that says its size
            return 0
        if head >> 3 & 15 == SEQUENCE_HEADER:
            return _sequence(data[place : place + min(size, 200)])
        place += size
    return 0


def _sequence(header: bytes) -> int:
    """Width times height at most, of a sequence header."""
    bits = int.from_bytes(header.ljust(200, b"\0"), "big")
    place = 1600

    def take(number: int) -> int:
        nonlocal place
        place -= number
        return bits >> place & (1 << number) - 1

    take(4)  # profile, still picture
    if take(1):  # the short form of still pictures
        take(5)
    else:
        decoder_model = delay_bits = 0
        if take(1):
            take(64)
            if take(1):
                zeros = 0
                while zeros < 32 and not take(1):
                    zeros += 1
                take(zeros)
            decoder_model = take(1)
            if decoder_model:
                delay_bits = take(5) + 1
                take(42)
        initial_delay = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if decoder_model and take(1):
                take(2 * delay_bits + 1)
            if initial_delay and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return (take(width_bits) + 1) * (take(height_bits) + 1)
