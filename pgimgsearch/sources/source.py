"""Sources: folders, lists and queries, all told as ScannedFile rows."""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pgimgsearch.errors import SourceError
from pgimgsearch.sources.decode import register_formats
from pgimgsearch.sources.rows import parse_rows, read_text, split

ADDRESS = re.compile("[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """One file of a source: ``path`` as stored, ``location`` to read it from, and its attributes.

    ``problem`` is set where the file could be named but not examined, and ``unlisted`` with it where it is a folder
    whose files are not known. Attributes that are None were not given, and leave what is stored as it is. ``data`` are
    its bytes, where the source is a stream that had to read them.
    """

    path: str
    location: str
    size: int | None = None
    modified_at: datetime | None = None
    given_key: str | None = None
    group_key: str | None = None
    caption: str | None = None
    metadata: dict[str, Any] | None = None
    problem: Exception | None = None
    unlisted: bool = False
    data: bytes | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """What identifies the image in its collection: the key that the source gave, else the path."""
        return self.path if self.given_key is None else self.given_key


class Part(Protocol):
    """A shard of a source."""

    def path(self, root: str) -> str:
        """Its own path as it is stored, where it fails as a whole."""

    def __call__(self, root: str) -> Iterator[ScannedFile]:
        """Its files."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where files come from. ``root`` is what paths are relative to; ``scope`` limits pruning to a folder in it.

    ``parts`` are its shards, where it consists of some: each gives its own files. ``whole`` is whether what it does not
    name is gone, within its scope: what pruning goes by.
    """

    label: str
    default_collection: str
    root: str | None
    files: Callable[[str], Iterator[ScannedFile]]
    count: Callable[[], int | None] = lambda: None
    scope: str | None = None
    left_out: list[int] = field(default_factory=lambda: [0])
    parts: Sequence[Part] = ()
    whole: bool = True


def is_url(path: str) -> bool:
    """Whether a path is a URL, of the web or of an object store."""
    return ADDRESS.match(path) is not None


def folder_source(path: Path) -> Source:
    """All images of a folder and its subfolders, or one file. Hidden names are left out, links to folders too."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            os.scandir(path).close()
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror}", hint="give a folder or an image that exists"
        ) from error
    path = path.resolve()
    if not stat.S_ISDIR(kind):
        folder = path.parent
        return Source(
            str(path),
            folder.name or "root",
            str(folder),
            lambda root: iter([_examine(path, root)]),
            lambda: 1,
            str(path),
        )
    left_out = [0]
    extensions = register_formats()

    def files(root: str) -> Iterator[ScannedFile]:
        left_out[0] = 0
        for found in _walk(path, extensions, left_out):
            if isinstance(found, tuple):
                unread, error = found
                yield ScannedFile(_stored(str(unread), root), str(unread), problem=error, unlisted=True)
            else:
                yield _examine(found, root)

    def count() -> int:
        total = sum(1 for _ in _walk(path, extensions, [0]))
        if total == 0:
            raise SourceError(
                f"there are no images in {path}",
                hint="give a folder that holds some, at any depth; tars and Parquet are named one by one: DIR/*.tar",
            )
        return total

    return Source(str(path), path.name or "root", str(path), files, count, str(path), left_out)


def list_source(path: str) -> Source:
    """Paths and URLs from a CSV or JSONL file with a ``path`` or ``url`` column, or one path a line; ``-`` is stdin.

    Relative paths are relative to the list; columns that are not ours become metadata.
    """
    if path == "-":
        lines = sys.stdin.read()
        folder, name = Path.cwd(), "stdin"
    else:
        file = Path(path).expanduser().resolve()
        lines, folder, name = read_text(file), file.parent, file.stem

    def files(root: str) -> Iterator[ScannedFile]:
        for row in parse_rows(lines, path):
            yield file_from_row(row, folder, root)

    def count() -> int:
        total = sum(1 for _ in parse_rows(lines, path))
        if total == 0:
            raise SourceError(
                f"the list {path} is empty", hint="write one path or URL a line, or CSV with a path column"
            )
        return total

    return Source(f"list {path}", name, str(folder), files, count)


def url_source(url: str) -> Source:
    """One image of the web."""
    return Source(url, "web", None, lambda _: iter([ScannedFile(url, url)]), lambda: 1, whole=False)


def files_source(folder: Path, files: Sequence[Path]) -> Source:
    """Some files below a folder, one by one."""
    return Source(
        str(folder), folder.name or "root", str(folder), lambda root: (_examine(file, root) for file in files),
        lambda: len(files),
    )  # fmt: skip


def list_images(folder: Path) -> list[Path]:
    """All images below a folder, in order of name, as ``folder_source`` finds them."""
    return [found for found in _walk(folder, register_formats(), [0]) if isinstance(found, Path)]


def _walk(folder: Path, extensions: frozenset[str], left_out: list[int]) -> Iterator[Path | tuple[Path, OSError]]:
    """Images below a folder, in order of name; a folder that cannot be read is told with its error."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield folder, error
        return
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), extensions, left_out)
        elif os.path.splitext(entry.name)[1].lower() in extensions:  # noqa: PTH122  (a Path a file is slow)
            yield Path(entry.path)
        else:
            left_out[0] += 1


def _examine(path: Path, root: str) -> ScannedFile:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a regular file")
        modified = datetime.fromtimestamp(found.st_mtime_ns // 1000 / 1e6, UTC)
    except (OSError, ValueError, OverflowError) as error:  # gone, a name with a NUL, a time beyond the calendar
        return ScannedFile(_stored(str(path), root), str(path), problem=error)
    return ScannedFile(_stored(str(path), root), str(path), found.st_size, modified)


def location_of(path: str, root: str | None) -> str:
    """Where a stored path is read from: below its collection's root, unless it is a URL or absolute."""
    return path if is_url(path) or root is None else os.path.join(root, path)  # noqa: PTH118  (an absolute path wins)


def _stored(path: str, root: str) -> str:
    """A path as it is stored: relative below the root; bytes that are no UTF-8 are written as escapes."""
    relative = os.path.relpath(path, root) if root and path.startswith(root.rstrip("/") + "/") else path
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def file_from_row(row: Mapping[str, Any], folder: Path, root: str) -> ScannedFile:
    own, rest = split(row, keyed=True)
    path = str(own.pop("path", "") or "").strip()
    if not path:
        raise SourceError("a row has neither path nor url", hint="name a column path or url")
    file = ScannedFile(path, path) if is_url(path) else _examine(Path(os.path.abspath(folder / path)), root)  # noqa: PTH100
    return replace(file, metadata=rest or None, given_key=own.pop("key", None), **own)
