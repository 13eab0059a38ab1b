"""PNG before it is decoded: chunks that change nothing of what is shown, and keep decoders from showing it.

Chunks: PNG (third edition), sections 5.3 and 11.
"""

import struct
import zlib
from dataclasses import dataclass, field

SIGNATURE = b"\x89PNG\r\n\x1a\n"
DRAWN = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT"}
TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
LONG_TEXT = 1 << 16  # bytes from which a text is left out; a description of the orientation is shorter
MOST_UNPACKED = 1 << 20  # of a text or profile that the decoder unpacks itself
MOST_PROFILE = 4 << 20
MOST_IN_ALL = 16 << 20  # unpacked of all texts; the others are left out unseen
SRGB_GAMMA = 45_455
SRGB_PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
ONCE = {b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"sBIT", b"eXIf"}  # before the pixels
ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
KNOWN = DRAWN | TEXTS | {
    b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"bKGD", b"hIST", b"pHYs", b"sPLT", b"tIME", b"eXIf",
}  # fmt: skip


@dataclass(slots=True)
class PngChunks:
    """A PNG that decodes, and what was found on the way."""

    data: bytes
    depth: int = 8
    color: int = 0
    white: int | None = None  # the largest value that its significant bits have
    profile: bytes | None = None  # where it was too large for the decoder
    unpacked: int = 0
    said: dict[bytes, bytes] = field(default_factory=dict)  # by the first chunk of a kind of its colours
    is_animated: bool = False
    is_ambiguous: bool = False  # it says something twice, too late or with a wrong checksum, as readers take it or not
    seen: set[bytes] = field(default_factory=set)
    extra: int = 0  # bytes in chunks that are not known, and behind the image
    notes: list[str] = field(default_factory=list)

    @property
    def meaning(self) -> bytes:
        """What other chunks than the pixels' say of its colours."""
        return b"".join(kind + content for kind, content in self.said.items())

    def note(self, text: str) -> None:
        """Tell of something once."""
        if text not in self.notes:
            self.notes.append(text)


def look_at(data: bytes) -> PngChunks | None:
    """Leave long texts and unusable profiles out, and set checksums right that the decoder would refuse.

    None for what is no PNG. Critical chunks stay as they are.
    """
    if not data.startswith(SIGNATURE) or len(data) < 33:
        return None
    found = PngChunks(data, data[24], data[25])
    kept: list[bytes | memoryview] = []
    whole, start, place = memoryview(data), 0, 8
    while place + 12 <= len(data):
        size, kind = struct.unpack_from("!I4s", data, place)
        end = place + 12 + size
        if end > len(data) or kind == b"IEND":
            found.extra += max(0, len(data) - end)
            break
        content = whole[place + 8 : end - 4]
        replaced = _replaced(kind, content, data[end - 4 : end], found)
        if replaced is not None:
            kept += [whole[start:place], replaced]
            start = end
        place = end
    if kept:
        found.data = b"".join([*kept, whole[start:]])
    return found


def _replaced(kind: bytes, content: memoryview, checksum: bytes, found: PngChunks) -> bytes | None:
    """What stands for a chunk: nothing where it is left out; None where it stays."""
    right = struct.pack("!I", zlib.crc32(content, zlib.crc32(kind)))
    is_second = kind in found.seen
    if kind in ONCE:
        usual = kind in {b"gAMA", b"cHRM"} and not _means_more(kind, content, found)
        found.is_ambiguous |= is_second or (not usual and (b"IDAT" in found.seen or checksum != right))
    found.is_ambiguous |= kind == b"IDAT" and checksum != right
    found.seen.add(kind)
    if kind in {b"IHDR", b"PLTE", b"IDAT"}:
        return None
    if kind in TEXTS and (len(content) > LONG_TEXT or _unpacks_far(kind, content, found)):
        found.note("it has a long text")
        return b""
    if kind in ANIMATION:
        found.is_animated = True
    elif kind not in KNOWN:
        found.extra += len(content)
    if kind not in found.said and checksum == right and _means_more(kind, content, found):
        found.said[kind] = bytes(content[:64])
    if kind == b"sBIT" and found.depth == 16 and content:
        found.white = (1 << min(16, max(1, content[0]))) - 1
    if kind == b"iCCP" and is_second:
        return b""
    if kind == b"iCCP" and _is_long(kind, content, MOST_UNPACKED):
        found.profile = _unpacked(kind, content, MOST_PROFILE + 1)
        return b""
    if checksum == right:
        return None
    found.note("a checksum in it is wrong")
    return struct.pack("!I", len(content)) + kind + bytes(content) + right if kind in DRAWN else b""


def _means_more(kind: bytes, content: memoryview, found: PngChunks) -> bool:
    """Whether a chunk says of the colours what is neither usual nor decoded."""
    if kind == b"gAMA":
        return abs(int.from_bytes(content[:4], "big") - SRGB_GAMMA) > 100
    if kind == b"cHRM":
        given = struct.unpack_from("!8I", content) if len(content) >= 32 else ()
        return any(abs(one - usual) > 100 for one, usual in zip(given, SRGB_PRIMARIES, strict=False))
    return kind == b"cICP" or (kind == b"tRNS" and found.depth != 8)


def _unpacks_far(kind: bytes, content: memoryview, found: PngChunks) -> bool:
    if kind == b"tEXt" or found.unpacked > MOST_IN_ALL:
        return kind != b"tEXt"
    length = len(_unpacked(kind, content, LONG_TEXT + 1))
    found.unpacked += length
    return length > LONG_TEXT


def _is_long(kind: bytes, content: memoryview, most: int) -> bool:
    return len(_unpacked(kind, content, most + 1)) > most


def _unpacked(kind: bytes, content: memoryview, most: int) -> bytes:
    """Up to so many bytes of what a chunk packs behind its names; nothing where it packs none."""
    name, _, rest = bytes(content).partition(b"\0")
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return b""
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind the language and the translated name
    else:
        packed = rest[1:]
    try:
        return zlib.decompressobj().decompress(packed, most) if name else b""
    except zlib.error:
        return b""
