"""Rows about images, from JSONL, CSV or plain lines: read, checked, and split into what is ours and metadata."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pgimgsearch.errors import SourceError

ATTRIBUTES = ("group_key", "caption")
COLUMNS = {"url": "path", "group": "group_key"}  # what people call the columns -> what they are here


def parse_rows(text: str, name: str) -> Iterator[dict[str, Any]]:
    """Rows of JSONL, of CSV with a header that names ``path`` or ``url``, or of one path a line."""
    text = text.removeprefix("\ufeff")
    lines = text.split("\n")  # not splitlines, which also splits at characters that JSON may hold
    first = lines[0].strip()
    rows: Iterator[dict[str, Any]]
    if first.startswith("{"):
        rows = (json_row(line, name, number) for number, line in enumerate(lines, 1) if line.strip())
    elif {"path", "url"} & {cell.strip() for cell in first.split(",")}:
        rows = _csv_rows(text, name)
    else:
        rows = ({"path": line.strip()} for line in lines if line.strip())
    for number, row in enumerate(rows, 1):
        _check(row, name, number)
        yield row


def _csv_rows(text: str, name: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        yield from map(dict, reader)
    except csv.Error as error:
        raise SourceError(f"{name}, line {reader.line_num}: {error}", hint="write CSV with a header") from error


def split(row: Mapping[str, Any], *, keyed: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes in a row, and the rest, which is metadata; a column ``metadata`` is merged into that.

    ``keyed`` is whether a column ``key`` is the image's key, as in lists and queries; else it is metadata.
    """
    named: dict[str, Any] = {}
    for key, value in row.items():
        column = COLUMNS.get(key, key)
        if key is not None and (column not in named or value not in (None, "")):  # a row has a path or a url
            named[column] = value
    columns = ("path", *(("key",) if keyed else ()), *ATTRIBUTES)
    own = {key: named.pop(key) for key in columns if key in named}
    given = named.pop("metadata", None)
    if isinstance(given, str) and given.strip():
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise SourceError(
                f"a metadata column holds no JSON: {given[:80]}", hint='write {"key": "value"}'
            ) from error
    if given and not isinstance(given, dict):
        raise SourceError(f"metadata is no JSON object: {str(given)[:80]}", hint='write {"key": "value"}')
    rest = {key: _plain(value) for key, value in named.items() if value not in (None, "")} | (given or {})
    return {key: None if value in (None, "") else str(value) for key, value in own.items()}, rest


def read_text(path: Path) -> str:
    """A file of rows, without the mark that some programs begin it with."""
    try:
        return path.read_text("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", hint="give a file that exists") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"cannot read {path}: {error}", hint="give a CSV or JSONL file in UTF-8") from error


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | dict) else str(value)


def _check(row: Mapping[str, Any], name: str, number: int) -> None:
    """Refuse what Postgres cannot store, before anything is done: NUL, half characters, NaN, metadata but objects."""
    try:
        told = json.dumps(split(row), ensure_ascii=False, allow_nan=False)
        told.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{name}, row {number} holds half a character: {error.reason}", hint="write UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name}, row {number}: {error}", hint="write values that JSON has, or null") from error
    if "\\u0000" in told:
        raise SourceError(f"{name}, row {number} holds a NUL character", hint="remove it")


def json_row(line: str, name: str, number: int) -> dict[str, Any]:
    """A line of JSONL; raises SourceError for what is no object."""
    try:
        row = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name}, line {number}: {error}", hint="write one JSON object a line") from error
    if not isinstance(row, dict):
        raise SourceError(f"{name}, line {number} is no JSON object", hint="write one JSON object a line")
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
