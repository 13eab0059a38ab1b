"""A list of paths and URLs: lines, CSV or JSONL."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from pgimgsearch.errors import SourceError
from pgimgsearch.sources.folder import scan_file
from pgimgsearch.sources.locations import ForbiddenLocation, check_location, is_url, without_user
from pgimgsearch.sources.rows import Row, parse_rows, read_text, split
from pgimgsearch.sources.source import ScannedFile, Source


class NoLocation(ValueError):  # noqa: N818  (its name is what ingest_failure stores)
    """A row names no image."""


class RepeatedRow(ValueError):  # noqa: N818  (its name is what ingest_failure stores)
    """A row says something else of an image than an earlier one."""


def list_source(path: str) -> Source:
    """Paths and URLs from CSV or JSONL with a ``path`` or ``url`` column, or one path a line; ``-`` is stdin.

    Relative paths are relative to the list, and stored as absolute ones: a list has no folder of its own. Columns that
    are not ours become metadata.
    """
    if path == "-":
        lines = sys.stdin.read()
        folder, name = Path.cwd(), "stdin"
    else:
        file = Path(path).expanduser().resolve()
        lines, folder, name = read_text(file), file.parent, file.stem

    captions = cache(lambda: _captions_of_several(parse_rows(lines, path)))

    def rows() -> Iterator[Row]:
        return _with_all_captions(parse_rows(lines, path), captions())

    def files(root: str) -> Iterator[ScannedFile]:
        return files_from_rows(rows(), folder, root)

    def count() -> int:
        total = sum(1 for _ in rows())
        if total == 0:
            raise SourceError(
                f"the list {path} is empty", hint="write one path or URL a line, or CSV with a path column"
            )
        return total

    return Source(f"list {path}", name, None, files, count)


def _captions_of_several(rows: Iterable[Row]) -> dict[int, list[str]]:
    """The captions of rows that differ by them alone, by what these say besides."""
    found: dict[int, list[str]] = {}
    for row in rows:
        if (besides := _besides_caption(row)) is not None:
            found.setdefault(besides, []).append(str(row.values["caption"]))
    return {besides: captions for besides, captions in found.items() if len(captions) > 1}


def _with_all_captions(rows: Iterable[Row], several: Mapping[int, list[str]]) -> Iterator[Row]:
    """The rows, of which those that differ by their captions alone are one, with a line for each."""
    told: set[int] = set()
    for row in rows:
        besides = _besides_caption(row)
        if besides is None or besides not in several:
            yield row
        elif besides not in told:
            told.add(besides)
            yield replace(row, values={**row.values, "caption": "\n".join(dict.fromkeys(several[besides]))})


def _besides_caption(row: Row) -> int | None:
    """A hash of what a row says besides its caption; None without one."""
    caption = row.values.get("caption")
    if row.problem is not None or not isinstance(caption, str) or not caption:
        return None
    return hash(json.dumps({**row.values, "caption": None}, sort_keys=True, default=str))


def files_from_rows(rows: Iterable[Row], folder: Path | None, root: str) -> Iterator[ScannedFile]:
    """The files that rows name; of several rows of one image the first counts.

    A later one that says the same is no trouble, and any other is a file with a problem, called by its number.
    """
    said: dict[int, int] = {}  # hashes, as there may be millions of rows
    for row in rows:
        file = file_from_row(row, folder, root)
        attributes = hash(
            (str(file.problem), file.path, file.caption, file.group_key, json.dumps(file.metadata, sort_keys=True))
        )
        if not file.unlisted and said.setdefault(hash(file.key), attributes) != attributes:
            name = f"row {row.number}"
            yield ScannedFile(
                name, "", problem=RepeatedRow(f"it says something else of {file.key} than an earlier row")
            )
        else:
            yield file


def file_from_row(row: Row, folder: Path | None, root: str) -> ScannedFile:
    """The file that a row names by ``path``, relative to ``folder``, or by ``url``, which is no local file.

    A row that names none, or holds what has no form in JSON, is one with a problem, and called by its key, its path or
    its number. Which image a row that cannot be read is about is not known.
    """
    name, problem = f"row {row.number}", row.problem
    if problem is not None:
        return ScannedFile(name, name, problem=problem, unlisted=True)
    try:
        own, rest = split(row.values, keyed=True)
    except (ValueError, SourceError) as error:  # its image is known all the same
        problem, rest = error, {}
        named = {name: row.values.get(name) for name in ("key", "path", "url")}
        own, _ = split({name: value for name, value in named.items() if isinstance(value, str | int)}, keyed=True)
    key, path = own.pop("key", None), str(own.pop("path", "") or "").strip()
    name = key or name
    if not path:
        return ScannedFile(name, "", problem=problem or NoLocation("the row has neither a path nor a url"))
    try:
        check_location(path)
        if str(row.values.get("url") or "").strip() == path and not is_url(path):
            raise ForbiddenLocation(
                "a column url holds URLs of the web or of an object store; files have a column path"
            )
        if folder is None and not is_url(path) and not os.path.isabs(path):  # noqa: PTH117
            raise ForbiddenLocation(f"{path} is relative, and its collection has no folder; write absolute paths")
        if is_url(path):
            file = ScannedFile(path, path)
        else:
            file = scan_file(Path(os.path.abspath(Path(folder or "/") / path)), root)  # noqa: PTH100
    except ForbiddenLocation as error:
        shown = without_user(path)
        file = ScannedFile(shown if shown == path else f"{shown} ({name})", "", problem=error)
    return replace(file, metadata=rest or None, given_key=key, problem=file.problem or problem, **own)
