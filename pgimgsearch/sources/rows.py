"""Rows about images, from JSONL, CSV of any dialect or plain lines, and split into what is ours and metadata."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgimgsearch.errors import SourceError
from pgimgsearch.sources.json_values import as_json

ATTRIBUTES = ("group_key", "caption")
COLUMNS = {"url": "path", "group": "group_key"}  # what people call the columns -> what they are here
# What other tools call them, in the order in which they are looked for, where ours is not there.
LOCATIONS = (
    "path",
    "url",
    "file_name",
    "filename",
    "file",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "image_url",
)
CAPTIONS = ("caption", "text", "title")
SEPARATORS = ",;\t|"
csv.field_size_limit(64 << 20)  # a description in HTML, an embedding as text


@dataclass(frozen=True, slots=True)
class Row:
    """One row, counted from 1, by column; or why it cannot be read."""

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: Exception | None = None


def parse_rows(text: str, name: str) -> Iterator[Row]:
    """Rows of JSONL, of CSV with a header that names the images, or of one path a line.

    Columns have our names: ``path`` or ``url``, and ``caption``. Raises SourceError for what is no table at all.
    """
    text = text.removeprefix("\ufeff")
    if "\n" not in text:  # as Excel for Macintosh ends lines
        text = text.replace("\r", "\n")
    lines = text.split("\n")  # not splitlines, which also splits at characters that JSON may hold
    first = lines[0].strip()
    if first.startswith("{"):
        yield from (_json_line(line, name, number) for number, line in enumerate(lines, 1) if line.strip())
    elif (separator := _separator(lines)) is not None:
        yield from _csv_rows(text, separator, name)
    else:
        paths = [line.strip() for line in lines if line.strip()]
        yield from (Row(number, {"path": path}) for number, path in enumerate(paths, 1))


def _json_line(line: str, name: str, number: int) -> Row:
    try:
        return Row(number, _renamed(json_row(line, name, number)))
    except SourceError as error:
        return Row(number, problem=ValueError(str(error)))


def _separator(lines: list[str]) -> str | None:
    """What separates the cells of a table whose header names images; None for lines that are no table."""
    if lines[0].startswith("sep=") and len(lines) > 1:  # as Excel writes it
        given = lines[0][4:5]
        return given if given and given not in '\r" ' else ","
    found: dict[str, int] = {}
    for separator in SEPARATORS:
        cells = next(csv.reader([lines[0]], delimiter=separator, skipinitialspace=True), [])
        if {cell.strip().casefold() for cell in cells} & set(LOCATIONS):
            found[separator] = len(cells)
    return max(found, key=lambda one: found[one], default=None)


def _csv_rows(text: str, separator: str, name: str) -> Iterator[Row]:
    """Rows by the header's names; unquoted separators belong to the last column."""
    lines = _Lines(text)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    try:
        header = next(reader, [])
        if header and header[0].startswith("sep="):
            header = next(reader, [])
        header = [cell.strip() for cell in header]
        if twice := [cell for cell, number in Counter(filter(None, header)).items() if number > 1]:
            raise SourceError(f"{name} names the column {twice[0]} twice", hint="give each column a name of its own")
        for number, cells in enumerate(filter(None, lines.with_rows(reader)), 1):
            if lines.last.count('"') % 2 and lines.last.rstrip("\r\n").count("\n"):
                told = f"{name}, row {number}: a quote is not closed, and takes in the lines after it"
                yield Row(number, problem=ValueError(told))
            elif len(cells) <= len(header):
                yield Row(number, _renamed(dict(zip(header, cells, strict=False))))
            elif '"' in lines.last:
                told = f"{name}, row {number} has {len(cells)} cells, and the header {len(header)}"
                yield Row(number, problem=ValueError(f"{told}: quote cells that hold a {separator}"))
            else:
                parts = [cell.strip() for cell in lines.last.split(separator, len(header) - 1)]
                yield Row(number, _renamed(dict(zip(header, parts, strict=True))))
    except csv.Error as error:
        raise SourceError(f"{name}, line {reader.line_num}: {error}", hint="write CSV with a header") from error


class _Lines:
    """Lines for a reader of CSV, which remembers those of the last row."""

    def __init__(self, text: str) -> None:
        self._lines, self._taken, self.last = io.StringIO(text, newline=""), list[str](), ""

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self._taken.append(line)
            yield line

    def with_rows(self, reader: Iterator[list[str]]) -> Iterator[list[str]]:
        """The reader's rows; ``last`` is the text of each."""
        self._taken.clear()
        for cells in reader:
            self.last = "".join(self._taken)
            self._taken.clear()
            yield cells


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose columns have our names, in lower case, where other tools have others for them."""
    known = {*COLUMNS, *ATTRIBUTES, "path", "key", "metadata"}
    named = {
        (lower if (lower := str(name).strip().casefold()) in known else name): value for name, value in row.items()
    }
    return with_caption(_with(named, "path", LOCATIONS))


def with_caption(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose caption is called so, where other tools have other names for it."""
    return _with(row, "caption", CAPTIONS)


def _with(row: Mapping[str, Any], ours: str, others: Sequence[str]) -> dict[str, Any]:
    """A row with the first of some columns that holds text under our name, unless that is there, or a URL."""
    named, by_lower = dict(row), {str(name).strip().casefold(): name for name in row}
    there = (by_lower[other] for other in others if other in by_lower)
    found = next((name for name in there if isinstance(named[name], str)), None)
    if found not in {None, ours, "url"} and ours not in named:
        named[ours] = named.pop(found)
    return named


def split(row: Mapping[str, Any], *, keyed: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes in a row, and the rest, which is metadata; a column ``metadata`` is merged into that.

    ``keyed`` is whether a column ``key`` is the image's key, as in lists and queries; else it is metadata. Raises
    SourceError for metadata that are no JSON object, and ValueError for a value that has no form in JSON.
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
    rest = {str(key): as_json(value, str(key)) for key, value in (named | (given or {})).items()}
    return (
        {key: _text(key, value) for key, value in own.items()},
        {key: value for key, value in rest.items() if value not in (None, "") or key in (given or {})},
    )


def _text(column: str, value: Any) -> str | None:
    """A value of one of our columns; several captions of an image are lines."""
    if column == "caption" and isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        value = "\n".join(filter(None, value))
    if isinstance(value, list | tuple | dict):
        raise ValueError(f"{column} is a list or an object, and not a text")
    return None if value in (None, "") else str(value)


def read_text(path: Path) -> str:
    """A file of rows, without the mark that some programs begin it with."""
    try:
        data = path.read_bytes()
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        return data.decode("utf-16" if utf16 else "utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", hint="give a file that exists") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"cannot read {path}: {error}", hint="give a CSV or JSONL file in UTF-8") from error


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
    """NaN, which says that there is no number, is null; infinities are no JSON."""
    if name != "NaN":
        raise ValueError(f"{name} is no JSON")
