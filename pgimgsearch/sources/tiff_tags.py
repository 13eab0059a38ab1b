"""The first directory of a TIFF or of EXIF, which has its form: its tags, before a library unpacks what they count."""

import struct
from dataclasses import dataclass

MARKS = {b"II*\0": "<", b"MM\0*": ">", b"II\0*": "<", b"MM*\0": ">"}  # the last two as Pillow reads them
BIG_MARKS = {b"II+\0": "<", b"MM\0+": ">"}
BITS, SAMPLES, KIND = 258, 277, 339
KINDS = {1: "whole numbers", 2: "signed numbers", 3: "floating point", 5: "complex numbers", 6: "complex numbers"}
WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tag: its type, how many values it has, and the first of them where it is a whole number."""

    kind: int
    count: int
    first: int | None


def directory(data: bytes) -> dict[int, Entry]:
    """The tags of a TIFF's first directory; empty for what is none.

    Source: TIFF revision 6.0, section 2; BigTIFF has numbers of eight bytes.
    """
    order, big = MARKS.get(data[:4]) or BIG_MARKS.get(data[:4]), data[:4] in BIG_MARKS
    if order is None or len(data) < 16:
        return {}
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    head, size, form = (8, 20, "HHQ8s") if big else (2, 12, "HHI4s")
    if start + head > len(data):
        return {}
    (number,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)
    entries = data[start + head : start + head + size * min(number, 65535)]
    found: dict[int, Entry] = {}
    for tag, kind, count, value in struct.iter_unpack(f"{order}{form}", entries[: len(entries) // size * size]):
        letter, place = WHOLE_NUMBERS.get(kind), value
        if letter and struct.calcsize(letter) * count > len(value):  # they stand elsewhere
            (offset,) = struct.unpack(f"{order}{'Q' if big else 'I'}", value)
            place = data[offset : offset + 8]
        fits = letter is not None and struct.calcsize(letter) <= len(place)
        first = struct.unpack_from(f"{order}{letter}", place)[0] if fits else None
        found.setdefault(tag, Entry(kind, count, first))
    return found


def most_values(data: bytes) -> int:
    """The largest count of the tags of a TIFF's first directory; 0 for what is none."""
    # a bare text or a private block may be long, but is one value to a library: types of several bytes, or numbers
    return max((entry.count for entry in directory(data).values() if entry.kind not in {2, 7}), default=0)


def described(data: bytes) -> str:
    """A TIFF in words, for one that is not read."""
    tags = directory(data)
    samples, bits, kind = ((tags[tag].first if tag in tags else None) or 1 for tag in (SAMPLES, BITS, KIND))
    channels = "1 channel" if samples == 1 else f"{samples} channels"
    return f"a TIFF of {channels} of {bits} bits in {KINDS.get(kind, 'numbers of an unknown kind')}"
