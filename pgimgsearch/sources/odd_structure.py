"""Files in which readers may see different things, or of which only a part is decoded: no pixels tell all of them.

They are identical to equal bytes only. And bytes that are there besides the image, which would be lost with the file.
"""

import struct
from collections.abc import Iterator

from pgimgsearch.sources import jpeg
from pgimgsearch.sources.tiff_tags import directory

HEADER = 1 << 16  # bytes in which HEIF and AVIF describe the image
EXIF, PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"
USUAL_PRIMARIES, USUAL_TRANSFER = {1, 2}, {1, 2, 6, 13}  # BT.709 and sRGB, or unsaid (ITU-T H.273)
LAYERS, FURTHER_IMAGES = 37724, 330  # tags of TIFF; the layers are Photoshop's
BMP_PROFILES = {b"DEBM", b"KNIL"}  # bV5CSType: a profile in the file, or the name of one
BOXES = {b"ftyp", b"meta", b"mdat", b"free", b"skip", b"moov"}  # of HEIF and AVIF at the top


def is_ambiguous(kind: str, data: bytes) -> bool:
    """Whether a file of a format says something of its pixels that is not decoded, or twice."""
    if kind in {"JPEG", "MPO"}:
        described = list(jpeg.descriptions(data))
        late = any(late and start.startswith(PROFILE) for start, late in described)
        return late or sum(start.startswith(EXIF) for start, _ in described) > 1
    if kind in {"HEIF", "AVIF"}:
        return any(
            primaries not in USUAL_PRIMARIES or transfer not in USUAL_TRANSFER
            for primaries, transfer in _code_points(data)
        )
    if kind == "TIFF":
        return not directory(data).keys().isdisjoint({LAYERS, FURTHER_IMAGES})
    if kind == "JPEG2000":
        return b"colr\2" in data[:HEADER]  # a profile
    return kind == "BMP" and data[70:74] in BMP_PROFILES and int.from_bytes(data[14:18], "little") >= 108


def bytes_besides(kind: str, data: bytes) -> int:
    """How many bytes a file has that are no part of its image, as the video of a motion photo."""
    if kind in {"JPEG", "MPO"}:
        return jpeg.bytes_behind(data)
    if kind in {"HEIF", "AVIF"}:
        return sum(size for name, size in _boxes(data) if name not in BOXES)
    if kind == "TIFF":
        layers = directory(data).get(LAYERS)
        return layers.count if layers else 0
    if kind == "WEBP":
        return max(0, len(data) - 8 - int.from_bytes(data[4:8], "little"))
    if kind == "BMP":
        return max(0, len(data) - int.from_bytes(data[2:6], "little")) if data[2:6] != bytes(4) else 0
    return 0


def _code_points(data: bytes) -> Iterator[tuple[int, int]]:
    """The colour primaries and transfer functions of ``nclx`` (ISO/IEC 23008-12, 6.5.5)."""
    place = data.find(b"colrnclx", 0, HEADER)
    while 0 <= place <= len(data) - 12:
        primaries, transfer = struct.unpack_from("!HH", data, place + 8)
        yield primaries, transfer
        place = data.find(b"colrnclx", place + 8, HEADER)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Names and sizes of the boxes at the top (ISO/IEC 14496-12, 4.2), as far as they can be read."""
    place = 0
    while place + 8 <= len(data):
        size, name = struct.unpack_from("!I4s", data, place)
        if size == 1 and place + 16 <= len(data):
            (size,) = struct.unpack_from("!Q", data, place + 8)
        size = len(data) - place if size == 0 else size
        if size < 8:
            return
        yield name, min(size, len(data) - place)
        place += size
