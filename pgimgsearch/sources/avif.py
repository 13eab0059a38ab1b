"""AVIF without decoding it: how large the frames of its streams are, whatever its header says.

Boxes: ISO/IEC 14496-12, sections 8.7.5 (offsets of chunks) and 8.11.3 (places of items). Sequence headers: AV1
bitstream specification, sections 5.3 and 5.5.
"""

from collections.abc import Iterator

CONTAINERS = {
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"meta": 4,
}  # and the bytes before their boxes
DEEPEST, MOST_PLACES, MOST_UNITS = 8, 1000, 10_000
SEQUENCE_HEADER = 1
LONGEST_HEADER = 1000  # bytes
UNKNOWN = 1 << 62  # pixels

Place = tuple[int, int]  # where a stream begins and where it ends at the latest


class _UnclearError(Exception):
    """What is written in a way that no program writes, to hide something."""


def largest_frame(data: bytes) -> int:
    """The most pixels that a frame of any of its streams may have, ``UNKNOWN`` where it hides that; 0 for no AVIF."""
    if data[4:8] != b"ftyp" or b"av1C" not in data:
        return 0
    try:
        return max((_frame(data, *place) for place in _places(data)), default=0)
    except _UnclearError:
        return UNKNOWN


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


def _places(data: bytes) -> list[Place]:
    """Where streams are: of items, and of the chunks of tracks."""
    items: list[tuple[int, int, int]] = []
    chunks: list[int] = []
    inner = 0  # where the data inside of the header begin

    def walk(start: int, end: int, depth: int) -> None:
        nonlocal inner
        for kind, first, last in _boxes(data, start, end):
            if kind in CONTAINERS and depth < DEEPEST:
                walk(first + CONTAINERS[kind], last, depth + 1)
            elif kind == b"iloc":
                items.extend(_items(data[first:last]))
            elif kind == b"idat":
                inner = first
            elif kind in {b"stco", b"co64"}:
                width = 4 if kind == b"stco" else 8
                table = data[first + 8 : last]
                if len(table) > width * MOST_PLACES:
                    raise _UnclearError
                chunks.extend(int.from_bytes(table[n : n + width], "big") for n in range(0, len(table), width))

    walk(0, len(data), 0)
    ends = [*sorted(chunks)[1:], len(data)]
    return [
        *((start + base, start + base + length) for method, start, length in items for base in [inner * (method == 1)]),
        *zip(sorted(chunks), ends, strict=False),
    ]


def _items(box: bytes) -> Iterator[tuple[int, int, int]]:
    """From where (1: the data inside of the header), offset and length of each item."""
    version, sizes = box[0] if box else 0, int.from_bytes(box[4:6], "big")
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 4 if version == 2 else 2
    number = int.from_bytes(box[6 : 6 + wide], "big")
    if number > MOST_PLACES:
        raise _UnclearError
    place = 6 + wide

    def take(size: int) -> int:
        nonlocal place
        place += size
        return int.from_bytes(box[place - size : place], "big")

    for _ in range(number):
        take(wide)
        method = take(2) & 15 if version in {1, 2} else 0
        take(2)
        start, extents = take(base), take(2)
        if extents > 1:
            raise _UnclearError
        if extents:
            take(index if version in {1, 2} else 0)
            start += take(offset)
            yield method, start, take(length)


def _frame(data: bytes, place: int, end: int) -> int:
    """The most pixels that sequence headers of a stream allow; 0 without one."""
    most = units = 0
    end = min(end, len(data)) if end > place else len(data)
    while place < end and units < MOST_UNITS:
        head, place = data[place], place + 1
        place += head >> 2 & 1  # its extension
        size = shift = 0
        while place < end and shift < 35:
            byte, place = data[place], place + 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if head & 0x82 != 2:  # no unit that says its size: what is not AV1, or ends here
            return most
        if head >> 3 & 15 == SEQUENCE_HEADER:
            most = max(most, _sequence(data[place : place + min(size, LONGEST_HEADER)]))
        place, units = place + size, units + 1
    if units == MOST_UNITS:
        raise _UnclearError
    return most


def _sequence(header: bytes) -> int:
    """Width times height at most, of a sequence header."""
    bits = int.from_bytes(header, "big")
    place = 8 * len(header)

    def take(number: int) -> int:
        nonlocal place
        place -= number
        if place < 0:
            raise _UnclearError
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
