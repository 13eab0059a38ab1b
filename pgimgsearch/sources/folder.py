"""A folder of images: what is found in it, and what is left out."""

import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pgimgsearch.errors import SourceError
from pgimgsearch.sources.decode import register_formats
from pgimgsearch.sources.source import ScannedFile, Source


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
            lambda root: iter([scan_file(path, root)]),
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
                yield scan_file(found, root)

    def count() -> int:
        total = sum(1 for _ in _walk(path, extensions, [0]))
        if total == 0:
            raise SourceError(
                f"there are no images in {path}",
                hint="give a folder that holds some, at any depth; tars and Parquet are named one by one: DIR/*.tar",
            )
        return total

    return Source(str(path), path.name or "root", str(path), files, count, str(path), left_out)


def files_source(folder: Path, files: Sequence[Path]) -> Source:
    """Some files below a folder, one by one."""
    return Source(
        str(folder), folder.name or "root", str(folder), lambda root: (scan_file(file, root) for file in files),
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


def scan_file(path: Path, root: str) -> ScannedFile:
    """One file, or the problem with it."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a regular file")
        modified = datetime.fromtimestamp(found.st_mtime_ns // 1000 / 1e6, UTC)
    except (OSError, ValueError, OverflowError) as error:  # gone, a name with a NUL, a time beyond the calendar
        return ScannedFile(_stored(str(path), root), str(path), problem=error)
    return ScannedFile(_stored(str(path), root), str(path), found.st_size, modified)


def _stored(path: str, root: str) -> str:
    """A path as it is stored: relative below the root; bytes that are no UTF-8 are written as escapes."""
    relative = os.path.relpath(path, root) if root and path.startswith(root.rstrip("/") + "/") else path
    return os.fsencode(relative).decode("utf-8", "backslashreplace")
