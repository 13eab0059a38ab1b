"""Shards: many pictures in one file, read once from its beginning. WebDataset tars, and Parquet with a column of bytes.

A picture's path is that of its shard and its name in it: ``shards/0001.tar/000017.jpg``.
"""

import json
import os
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import fsspec

from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.pipeline.decode import register_formats
from pgimgsearch.pipeline.remote import filesystem, is_transient
from pgimgsearch.pipeline.rows import split
from pgimgsearch.pipeline.scan import ScannedFile, Source, is_url

TARS, PARQUET = (".tar", ".tar.gz", ".tgz"), (".parquet",)
MOST_BYTES, MOST_TEXT = 256 << 20, 1 << 20  # of a picture, and of what is said about it
ROWS_AT_ONCE = 64
TRIES, SECONDS_BETWEEN = 4, 1.0
PICTURES = ("image", "bytes", "image_bytes", "jpg", "png", "webp", "data", "content")  # columns, by their usual names
NAMES = ("path", "__key__", "key", "file_name", "filename", "name", "id")
BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError, ValueError)


def is_shard(location: str) -> bool:
    """Whether a source is one file with many pictures, by its name."""
    return location.lower().endswith(TARS + PARQUET)


def shard_source(locations: Sequence[str]) -> Source:
    """The pictures of shards that lie in one folder or below one prefix, one shard after the other."""
    places = [place if is_url(place) else os.path.abspath(place) for place in locations]  # noqa: PTH100
    root = places[0].rpartition("/")[0]
    for place in places:
        if is_url(place):
            filesystem(place.partition("://")[0])
        elif not os.path.isfile(place):  # noqa: PTH113
            raise SourceError(f"there is no shard {place}", hint="give a file that exists")

    parts = [partial(_pictures, place, place.removeprefix(root + "/")) for place in places]
    label = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
    return Source(label, root.rpartition("/")[2] or "shards", root,
                  lambda _: chain.from_iterable(part() for part in parts), parts=parts)  # fmt: skip


def folder_of(location: str) -> str:
    """What the paths of a shard's pictures are relative to."""
    return (location if is_url(location) else os.path.abspath(location)).rpartition("/")[0]  # noqa: PTH100


def read_member(location: str, most: int) -> bytes:
    """At most ``most`` bytes of one picture of an uncompressed tar; raises OSError where there is no such one."""
    shard, _, name = location.partition(".tar/")
    offset, size = _members(f"{shard}.tar")[name]
    with fsspec.open(f"{shard}.tar", "rb") as file:
        file.seek(offset)
        data: bytes = file.read(min(size, most))
    return data


def is_member(location: str) -> bool:
    """Whether a location is that of a picture in a tar that can be read by itself."""
    return ".tar/" in location


class _Members(dict[str, tuple[int, int]]):
    def __missing__(self, name: str) -> tuple[int, int]:
        raise FileNotFoundError(f"the shard holds no {name}")


@lru_cache(maxsize=8)
def _members(shard: str) -> _Members:
    """Name -> offset and size."""
    with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        return _Members({member.name: (member.offset_data, member.size) for member in tar if member.isfile()})


def _pictures(location: str, name: str) -> Iterator[ScannedFile]:
    """All pictures of a shard. One that breaks is told as a file; a store that fails is tried again from there."""
    reader: Callable[[str, str], Iterator[ScannedFile]] = _parquet if location.lower().endswith(PARQUET) else _tar
    done = 0
    for attempt in range(1, TRIES + 1):
        try:
            for number, file in enumerate(reader(location, name)):
                if number >= done:
                    done += 1
                    yield file
            return
        except BROKEN as error:
            if not is_transient(error) or attempt == TRIES:
                yield ScannedFile(name, location, problem=error, unlisted=True)
                return
            time.sleep(SECONDS_BETWEEN * attempt)


def _tar(location: str, name: str) -> Iterator[ScannedFile]:
    """Members that share a name up to its first dot are one sample: pictures, .txt is their caption, .json metadata."""
    pictures: list[ScannedFile] = []
    about: dict[str, bytes] = {}
    current = None
    with fsspec.open(location, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, _, base = member.name.rpartition("/")
            key, ending = f"{folder}/{base.partition('.')[0]}", base.rpartition(".")[2].lower()
            if key != current:
                yield from _sample(pictures, about)
                pictures, about, current = [], {}, key
            if f".{ending}" in register_formats():
                pictures.append(_member(tar, member, location, name))
            elif ending in {"txt", "json", "cls"} and member.size <= MOST_TEXT:
                about[ending] = _content(tar, member)
    yield from _sample(pictures, about)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, location: str, name: str) -> ScannedFile:
    modified = datetime.fromtimestamp(int(member.mtime), UTC) if 0 <= member.mtime < 1 << 33 else None
    file = ScannedFile(f"{name}/{member.name}", f"{location}/{member.name}", member.size, modified)
    if member.size > MOST_BYTES:
        return replace(file, problem=ValueError(f"over the limit of {MOST_BYTES / 1e6:g} MB"))
    return replace(file, data=_content(tar, member))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None, "a regular file"
    return content.read()


def _sample(pictures: Sequence[ScannedFile], about: Mapping[str, bytes]) -> list[ScannedFile]:
    """The pictures with what was said of them; a text that cannot be read fails them, as it would be lost."""
    if not about:
        return list(pictures)
    try:
        said = json.loads(about.get("json", b"{}"))
        if not isinstance(said, dict):
            raise ValueError("the .json is no object")
        own, rest = _attributes(said)
        if "txt" in about:
            own["caption"] = about["txt"].decode().strip()
        if "cls" in about:
            rest["class"] = about["cls"].decode().strip()
    except (ValueError, SourceError) as error:
        return [replace(picture, problem=ValueError(f"what is said of it cannot be read: {error}"), data=None)
                for picture in pictures]  # fmt: skip
    return [replace(picture, metadata=rest or None, **own) for picture in pictures]


def _attributes(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of a row is ours by name, and metadata; an address where it came from is metadata too."""
    own, rest = split({key: value for key, value in row.items() if key not in {"path", "url"}})
    return own, rest | {key: row[key] for key in ("url",) if row.get(key)}


def _parquet(location: str, name: str) -> Iterator[ScannedFile]:
    """Each row is a picture; a column of names is its path, the others are attributes and metadata."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(
            "to read Parquet needs the package pyarrow, which is not installed",
            hint="run: pip install 'pgimgsearch[parquet]'",
        ) from error
    with fsspec.open(location, "rb") as stream, ParquetFile(stream) as table:
        column = _column(table, PICTURES, _holds_bytes)
        if column is None:
            raise ValueError(f"no column holds the bytes of pictures: {', '.join(table.schema_arrow.names)}")
        named = _column(table, NAMES, lambda _: True)
        number = 0
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield _row(row, column, named, number, location, name)
                number += 1


def _column(table: Any, usual: Sequence[str], fits: Callable[[Any], bool]) -> str | None:
    schema = table.schema_arrow
    return next((name for name in usual if name in schema.names and fits(schema.field(name).type)), None)


def _holds_bytes(kind: Any) -> bool:
    """Binary, or a struct with bytes in it, as the hub's datasets have."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _row(row: dict[str, Any], column: str, named: str | None, number: int, location: str, name: str) -> ScannedFile:
    picture: Any = row.pop(column)
    inner = None
    if isinstance(picture, dict):
        picture, inner = picture.get("bytes"), picture.get("path")
    picture = picture or b""
    own_name = str((row.pop(named) if named else None) or inner or f"{number:08}")
    file = ScannedFile(f"{name}/{own_name}", f"{location}/{own_name}", len(picture), data=picture)
    if not picture:
        return replace(file, problem=ValueError("the row holds no bytes"), data=None)
    try:
        own, rest = _attributes({key: value for key, value in row.items() if not isinstance(value, bytes)})
    except SourceError as error:
        return replace(file, problem=ValueError(str(error)), data=None)
    return replace(file, metadata=rest or None, **own)
