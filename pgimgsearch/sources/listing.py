"""A list of paths and URLs: lines, CSV or JSONL."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgimgsearch.errors import SourceError
from pgimgsearch.sources.folder import scan_file
from pgimgsearch.sources.locations import ForbiddenLocation, check_location, is_url, without_user
from pgimgsearch.sources.rows import parse_rows, read_text, split
from pgimgsearch.sources.source import ScannedFile, Source


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


def file_from_row(row: Mapping[str, Any], folder: Path, root: str) -> ScannedFile:
    """The file that a row names by ``path``, relative to ``folder``, or by ``url``, which is no local file."""
    own, rest = split(row, keyed=True)
    path = str(own.pop("path", "") or "").strip()
    if not path:
        raise SourceError("a row has neither path nor url", hint="name a column path or url")
    try:
        check_location(path)
        if str(row.get("url") or "").strip() == path and not is_url(path):
            raise ForbiddenLocation(
                "a column url holds URLs of the web or of an object store; files have a column path"
            )
        file = ScannedFile(path, path) if is_url(path) else scan_file(Path(os.path.abspath(folder / path)), root)  # noqa: PTH100
    except ForbiddenLocation as error:
        file = ScannedFile(without_user(path), "", problem=error)
    return replace(file, metadata=rest or None, given_key=own.pop("key", None), **own)
