"""What Postgres can hold of a row: what is beyond it fails that row, by a name that can be stored."""

import hashlib
import json
import re

from pgimgsearch.sources.source import ScannedFile

MOST_KEY = 2600  # bytes: a row of a B-tree index has at most 2,704
MOST_CAPTION = 1_000_000  # bytes: what a tsvector holds
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes it
MOST_METADATA = 16 << 20  # bytes, as JSON


class UnstorableRow(ValueError):  # noqa: N818  (its name is what ingest_failure stores)
    """The database cannot hold what is said of the image."""


def storable(file: ScannedFile) -> ScannedFile:
    """The file as it is, or with a problem and a key that can be stored."""
    try:
        _check(file)
    except UnstorableRow as why:
        key = None if file.given_key is None else _short(file.given_key)
        # the bytes and attributes go: nothing of the image is stored
        return ScannedFile(_short(file.path), file.location, given_key=key, problem=file.problem or why)
    return file


def _check(file: ScannedFile) -> None:
    """Raise UnstorableRow for what cannot be stored."""
    for name, value in (("key", file.given_key), ("path", file.path), ("group", file.group_key)):
        _check_text(name, value, MOST_KEY)
    _check_text("caption", file.caption, MOST_CAPTION)
    if file.metadata is not None:
        try:
            told = json.dumps(file.metadata, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UnstorableRow(f"its metadata cannot be stored: {error}") from error
        _check_text("metadata", NUL.sub("\0", told), MOST_METADATA)


def _check_text(name: str, value: str | None, most: int) -> None:
    if value is None:
        return
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise UnstorableRow(f"its {name} holds half a character") from error
    if "\0" in value:
        raise UnstorableRow(f"its {name} holds a NUL character")
    if size > most:
        raise UnstorableRow(f"its {name} has {size} bytes, {most} are the limit")


def _short(text: str) -> str:
    """A text as it may be a key: the same for the same text."""
    readable = text.encode("utf-8", "backslashreplace").replace(b"\0", b"\\0")
    if readable.decode() == text and len(readable) <= MOST_KEY:
        return text
    return f"{readable[:200].decode('utf-8', 'ignore')}... {hashlib.sha256(readable).hexdigest()[:16]}"
