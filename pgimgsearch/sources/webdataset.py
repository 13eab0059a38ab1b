"""WebDataset tars: members that share a name up to its first dot are a sample, of images and what is said of them."""

import bz2
import gzip
import io
import json
import lzma
import os
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pgimgsearch.sources.decode import register_formats
from pgimgsearch.sources.limits import DEFAULT_LIMITS
from pgimgsearch.sources.locations import is_web
from pgimgsearch.sources.object_store import again
from pgimgsearch.sources.rows import with_caption
from pgimgsearch.sources.source import ScannedFile
from pgimgsearch.sources.stream import open_stream

MOST_ATTRIBUTES, MOST_EMPTY = 1000, 10_000  # of a member; images of hardly a byte, each of which is a failure
TINY = 16  # bytes, of which no image has fewer
MOST_OTHERS = 100_000  # members that are left out; some bytes may name millions
MOST_SIZE = 1 << 34  # bytes of a member
MOST_NAME = 4096  # characters
BYTES_A_MEMBER = 2000  # that it takes in memory, besides its own
MOST_TEXT, SAMPLE_BYTES = 1 << 20, 64 << 20  # of a text, and of what waits for texts
PACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
HELD = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


class _Strict(tarfile.TarInfo):
    """A broken header in the middle is the end to tarfile, and would lose the rest without a word.

    Long names and attributes come before a member, and are held in memory: they have a bound.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Strict":
        found = super().frombuf(buf, encoding, errors)
        if found.type in HELD and found.size > MOST_TEXT:
            raise tarfile.ReadError(f"the tar has a name or attributes of {found.size} bytes; {MOST_TEXT} is the limit")
        if found.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("the tar has a sparse file, whose map may be of any size")
        return found

    def _apply_pax_info(self, pax_headers: Any, encoding: str, errors: str) -> None:
        if any(name.startswith("GNU.sparse.") for name in pax_headers):
            raise tarfile.ReadError("the tar has a sparse file, whose map may be of any size")
        if len(pax_headers) > MOST_ATTRIBUTES:
            raise tarfile.ReadError(f"a member has {len(pax_headers)} attributes; {MOST_ATTRIBUTES} are the limit")
        super()._apply_pax_info(pax_headers, encoding, errors)  # type: ignore[misc]

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Strict":
        try:
            found = super().fromtarfile(tar)
            if not 0 <= found.size <= MOST_SIZE:  # attributes before it may say any; it would be skipped for ever
                raise tarfile.ReadError(f"a member says to have {found.size} bytes")
            return found
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"the tar breaks off: {error}") from error


@dataclass(slots=True)
class Sample:
    """What shares a name up to its first dot: images, texts by (stem, ending), and the bytes of both."""

    pictures: list[ScannedFile] = field(default_factory=list)
    texts: dict[tuple[str, str], bytes] = field(default_factory=dict)
    size: int = 0


def samples(location: str) -> Iterator[tuple[ScannedFile, dict[str, Any]]]:
    """Images by their names in the tar, each with what its sample says: .json, .txt as caption, .cls as class.

    A sample waits for its texts while there is room: members need not be in order.
    """
    waiting: dict[str, Sample] = {}  # in the order in which they began
    gone: dict[int, bool] = {}  # by the hash of the name, and whether texts went with them
    size = empty = others = 0
    try:
        with (
            open_stream(location) as stream,
            unpacked(stream) as plain,
            tarfile.open(fileobj=plain, mode="r|", tarinfo=_Strict) as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # which holds them all
                member.name = inside(member.name)
                folder, _, base = member.name.rpartition("/")
                key, ending = f"{folder}/{base.partition('.')[0]}", base.rpartition(".")[2].lower()
                is_image, is_text = f".{ending}" in register_formats(), ending in {"txt", "json", "cls"}
                if base.startswith(".") or not (is_image or is_text):
                    others += 1
                    if others > MOST_OTHERS:
                        raise tarfile.ReadError(f"more than {MOST_OTHERS} members are neither images nor texts")
                    continue
                empty += is_image and member.size < TINY
                if empty > MOST_EMPTY:
                    raise tarfile.ReadError(f"more than {MOST_EMPTY} images have less than {TINY} bytes")
                is_late = gone.get(hash(key), False) or (is_text and hash(key) in gone)
                why = _problem(member, is_text=is_text, is_late=is_late)
                text = (member.name.rpartition(".")[0], ending)
                if is_text and why is None and key in waiting and text in waiting[key].texts:
                    why = "a second text of that name: which image it is of is not known"
                if why is not None:
                    yield ScannedFile(member.name, "", member.size, problem=ValueError(why)), {}
                    continue
                sample = waiting.setdefault(key, Sample())
                if is_image:
                    sample.pictures.append(_member(tar, member))
                else:
                    sample.texts[text] = _content(tar, member)
                takes = member.size + len(member.name) + BYTES_A_MEMBER
                size, sample.size = size + takes, sample.size + takes
                while size > SAMPLE_BYTES:
                    first = next(iter(waiting))
                    gone[hash(first)] = gone.get(hash(first), False) or bool(waiting[first].texts)
                    size -= waiting[first].size
                    yield from _with_attributes(waiting.pop(first))
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile):
        for sample in waiting.values():
            yield from _with_attributes(sample)  # what was read before it broke off
        raise
    for sample in waiting.values():
        yield from _with_attributes(sample)


@contextmanager
def unpacked(stream: Any) -> Iterator[Any]:
    """A stream of a tar, whatever packs it; tarfile itself takes hours for what is packed far."""
    buffered = io.BufferedReader(stream)
    try:
        start = buffered.peek(6)[:6]
        opener = next((opener for mark, opener in PACKERS.items() if start.startswith(mark)), None)
        if opener is None:
            yield buffered
        else:
            with opener(buffered) as plain:
                yield plain
    finally:
        buffered.detach()  # who opened the stream closes it


def _problem(member: tarfile.TarInfo, *, is_text: bool, is_late: bool) -> str | None:
    """Why a member is not taken."""
    if member.issym() or member.islnk():
        return "a link to another member, which is not followed: make the tar with --dereference --hard-dereference"
    if not member.isfile():
        return "no regular file"
    if len(member.name) > MOST_NAME:
        return f"a name of {len(member.name)} characters, {MOST_NAME} are the limit"
    if is_text and member.size > MOST_TEXT:
        return f"a text of {member.size} bytes, {MOST_TEXT} are the limit"
    what = "a text too long after its image" if is_text else "an image too long after its text"
    return f"{what}: sort the tar by name" if is_late else None


def is_member(location: str) -> bool:
    """Whether a location is that of an image in a plain tar, which can be read by itself."""
    shard, inside, _ = location.partition(".tar/")
    return bool(inside) and not is_web(location) and not os.path.isdir(f"{shard}.tar")  # noqa: PTH112


@again
def read_member(location: str, most: int) -> bytes:
    """At most ``most`` bytes of one image; raises FileNotFoundError where there is no such one."""
    shard, _, name = location.partition(".tar/")
    members = _members(f"{shard}.tar")
    if name not in members:
        raise FileNotFoundError(f"{shard}.tar holds no {name}")
    offset, size = members[name]
    with open_stream(f"{shard}.tar") as file:
        file.seek(offset)
        data: bytes = file.read(min(size, most))
    return data


def inside(name: str) -> str:
    """A name as it is stored below its shard: no way leads out, and bytes that are no UTF-8 are written as escapes."""
    readable = os.fsencode(name).decode("utf-8", "backslashreplace").replace("\0", "\\0")
    return posixpath.normpath(f"/{readable}").lstrip("/")


@lru_cache(maxsize=8)
def _members(shard: str) -> dict[str, tuple[int, int]]:
    """Name -> offset and size."""
    found: dict[str, tuple[int, int]] = {}
    with open_stream(shard) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Strict) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            if member.isfile():  # of several that are called so the first has the name
                found.setdefault(inside(member.name), (member.offset_data, member.size))
    return found


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> ScannedFile:
    modified = datetime.fromtimestamp(int(member.mtime), UTC) if 0 <= member.mtime < 1 << 33 else None
    if member.size > DEFAULT_LIMITS.max_bytes:
        problem = ValueError(f"over the limit of {DEFAULT_LIMITS.max_bytes / 1e6:g} MB")
        return ScannedFile(member.name, "", member.size, modified, problem=problem)
    return ScannedFile(member.name, "", member.size, modified, data=_content(tar, member))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None, "a regular file"
    return content.read()


def _with_attributes(sample: Sample) -> Iterator[tuple[ScannedFile, dict[str, Any]]]:
    """Each image with the texts that share its whole stem, and those of the whole sample.

    Where stems of images have dots (``shot.001.png``), a text of another such stem is of an image that is not there,
    and fails by its name.
    """
    stems = {picture.path.rpartition(".")[0] for picture in sample.pictures}
    dotted = any(map(_has_dot, stems))
    others = {name for name in sample.texts if name[0] not in stems and dotted and _has_dot(name[0])}
    of_all = [name for name in sample.texts if name[0] not in stems and name not in others]
    several = {ending for ending, number in Counter(ending for _, ending in of_all).items() if number > 1}
    shared = {ending: sample.texts[stem, ending] for stem, ending in of_all if ending not in several}
    told = set[str]()
    for picture in sample.pictures:
        own = picture.path.rpartition(".")[0]
        texts = {ending: text for (stem, ending), text in sample.texts.items() if stem == own}
        # of several members of one name, the texts are of the first
        yield picture, _said(shared | texts) if picture.path not in told else {}
        told.add(picture.path)
    for stem, ending in sorted(others):
        why = ValueError(f"a text of an image {stem} that the tar does not hold")
        yield ScannedFile(f"{stem}.{ending}", "", problem=why), {}
    for stem, ending in (name for name in of_all if name[1] in several and sample.pictures):
        why = ValueError(f"one of several .{ending} of a sample: which is meant is not known")
        yield ScannedFile(f"{stem}.{ending}", "", problem=why), {}


def _has_dot(stem: str) -> bool:
    return "." in stem.rpartition("/")[2]


def _said(texts: dict[str, bytes]) -> dict[str, Any]:
    """What texts say; one that cannot be read is told so, as it would be lost."""
    said: dict[str, Any] = {}
    for ending, content in texts.items():
        try:
            text = content.decode("utf-8-sig")
            if ending == "json":
                read = json.loads(text)
                said = {**(with_caption(read) if isinstance(read, dict) else {"metadata": text}), **said}
            else:
                said[{"txt": "caption", "cls": "class"}[ending]] = text.strip()
        except (ValueError, RecursionError) as error:
            said["metadata"] = f"the .{ending}: {error}"  # no JSON, so it fails where it is split
    return said
