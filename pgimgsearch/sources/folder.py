"""Folders of images: what is found in them, and what is left out."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pgimgsearch.errors import SourceError
from pgimgsearch.sources.decode import MARK, begins_like_an_image, register_formats
from pgimgsearch.sources.selection import LeftOut, Selection
from pgimgsearch.sources.source import ScannedFile, Source
from pgimgsearch.sources.storable import MOST_CAPTION, UnstorableRow
from pgimgsearch.sources.stream import open_file


def folder_source(path: Path, selection: Selection | None = None) -> Source:
    """All images of a folder and its subfolders, or one file. Hidden names are left out, links to folders too.

    The text of NAME.txt is the caption of the image NAME beside it.
    """
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
        return files_source([path])
    chosen, left_out = selection or Selection(), LeftOut()

    def files(root: str) -> Iterator[ScannedFile]:
        left_out.clear()
        for found, caption in _walk(str(path), chosen, left_out):
            if isinstance(found, OSError):
                yield ScannedFile(_stored(caption, root), caption, problem=found, unlisted=True)
            else:
                file = scan_file(Path(found), root)
                yield _captioned(file, caption, str(path)) if caption else file

    def count() -> int:
        unread = LeftOut()
        total = sum(1 for _ in _walk(str(path), chosen, unread))
        if total == 0:
            raise SourceError(
                "; ".join([f"there are no images in {path}", *unread.told()]),
                hint="give a folder that holds some, at any depth; tars and Parquet are named one by one: DIR/*.tar",
            )
        return total

    return Source(
        str(path), path.name or "root", str(path), files, count, str(path), left_out, leaves_out=chosen.leaves_out
    )


def files_source(files: Sequence[Path], folder: Path | None = None) -> Source:
    """Some files, one by one; below a folder, or that which holds them all."""
    root = str(folder or os.path.commonpath([file.parent for file in files]))
    label = str(files[0]) if len(files) == 1 else f"{len(files)} files of {root}"
    return Source(
        label, os.path.basename(root) or "root", root,  # noqa: PTH119
        lambda root: (scan_file(file, root) for file in files), lambda: len(files), str(files[0]), whole=False,
    )  # fmt: skip


def list_images(folder: Path) -> list[Path]:
    """All images below a folder, in order of name, as ``folder_source`` finds them."""
    return [Path(found) for found, _ in _walk(str(folder), Selection(), LeftOut()) if isinstance(found, str)]


def _walk(top: str, selection: Selection, left_out: LeftOut) -> Iterator[tuple[str | OSError, str]]:
    """Images below a folder, in order of name, each with the text beside it or ``""``.

    A folder that cannot be read is told by its error, with its path. Not recursive: folders may be nested deeply.
    """
    waiting: list[Iterator[os.DirEntry[str]]] = []
    texts: list[set[str]] = []

    def enter(folder: str) -> OSError | None:
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            return error
        names = {entry.name for entry in listed}
        images = (name for name in names if _has_ending(name) or _says_nothing(os.path.splitext(name)[1]))  # noqa: PTH122
        used = {text for text in map(_text_of, images) if text in names}
        waiting.append(entry for entry in listed if not entry.name.startswith(".") and entry.name not in used)
        texts.append(used)
        return None

    if (error := enter(top)) is not None:
        yield error, top
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop(), texts.pop()
            continue
        relative = entry.path[len(top) :].lstrip("/")
        extension = os.path.splitext(entry.name)[1]  # noqa: PTH122  (a Path a file is slow)
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder and not selection.enters(relative):
            left_out.exclude(f"{relative}/")
        elif is_folder:
            if (error := enter(entry.path)) is not None:
                yield error, entry.path
        elif not (_has_ending(entry.name) or (_says_nothing(extension) and _is_image(entry))):
            left_out.add(extension.lower())
        elif selection.takes(relative):
            text = _text_of(entry.name)
            yield entry.path, f"{os.path.dirname(entry.path)}/{text}" if text in texts[-1] else ""  # noqa: PTH120
        else:
            left_out.exclude(relative)


def _text_of(name: str) -> str:
    """What the text beside an image is called; an ending that says nothing is part of the name."""
    stem, extension = os.path.splitext(name)  # noqa: PTH122
    return f"{name if _says_nothing(extension) else stem}.txt"


def _has_ending(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in register_formats()  # noqa: PTH122


def _says_nothing(extension: str) -> bool:
    return not extension or extension[1:].isdigit()


def _is_image(entry: "os.DirEntry[str]") -> bool:
    """Whether a file begins like an image; one that cannot be read may be, and fails where it is read."""
    try:
        if not entry.is_file():
            return False
        with open_file(entry.path) as file:
            return begins_like_an_image(file.read(MARK))
    except OSError:
        return True


def _captioned(file: ScannedFile, path: str, folder: str) -> ScannedFile:
    """A file with the text beside it; one that cannot be read fails the file, as it would be lost without a word.

    A link that leads out of the folder is not followed: it could show any file as a caption.
    """
    try:
        if os.path.islink(path) and not os.path.realpath(path).startswith(f"{os.path.realpath(folder)}/"):  # noqa: PTH114
            raise OSError(0, "a link that leads out of the folder")
        with open_file(path) as text:
            return replace(file, caption=text.read(MOST_CAPTION + 1).decode("utf-8-sig").strip() or None)
    except (OSError, UnicodeDecodeError) as error:
        return replace(file, problem=file.problem or UnstorableRow(f"the text beside it cannot be read: {error}"))


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
    readable = os.fsencode(path).decode("utf-8", "backslashreplace")
    if readable != path and os.path.lexists(readable):  # another file is called as this one is written
        readable += f" ({hashlib.sha256(os.fsencode(path)).hexdigest()[:8]})"
    below = root and readable.startswith(root.rstrip("/") + "/")
    return os.path.relpath(readable, root) if below else readable
