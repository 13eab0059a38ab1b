"""The first directory of a TIFF or of EXIF, which has its form: its tags, before a library unpacks what they count."""

import struct

MOST_VALUES = 100_000  # of one tag: strips, tiles
MARKS = {b"II*\0": "<", b"MM\0*": ">"}


def most_values(data: bytes) -> int:
    """The largest count of the tags of a TIFF's first directory; 0 for what is none, or a BigTIFF.

    Source: TIFF revision 6.0, section 2.
    """
    order = MARKS.get(data[:4])
    if order is None or len(data) < 8:
        return 0
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data):
        return 0
    (number,) = struct.unpack_from(f"{order}H", data, start)
    entries = data[start + 2 : start + 2 + 12 * number]
    whole = len(entries) // 12 * 12
    # a bare text or a private block may be long, but is one value to a library: types of several bytes, or numbers
    counts = [count for _, kind, count, _ in struct.iter_unpack(f"{order}HHI4s", entries[:whole]) if kind not in {2, 7}]
    return max(counts, default=0)
