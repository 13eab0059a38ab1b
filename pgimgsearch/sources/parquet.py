"""Parquet of images: a row an image, its bytes in one column, what is said of it in the others."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pgimgsearch.errors import ModelError
from pgimgsearch.sources.source import ScannedFile
from pgimgsearch.sources.stream import open_stream

ROWS_AT_ONCE = 64
LARGE, MOST_RATIO = 256 << 20, 200  # bytes of a column in a row group, and how far images and their texts are packed
PICTURES = ("image", "bytes", "image_bytes", "jpg", "png", "webp", "data", "content")  # columns, by their usual names
NAMES = ("path", "__key__", "key", "file_name", "filename")


def libraries() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, or the command that installs them."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ModelError(
            "Parquet needs the package pyarrow, which is not installed", hint="run: pip install 'pgimgsearch[parquet]'"
        ) from error
    return pyarrow, parquet


def open_table(stream: Any) -> Any:
    """A ParquetFile of a seekable stream, whose repeated values are held once (a dictionary), as they are in the file.

    Raises ValueError for a column that unpacks to very much more than it takes there.
    """
    _, parquet = libraries()
    about = parquet.read_metadata(stream)
    for column in _chunks(about):
        size, packed = column.total_uncompressed_size, column.total_compressed_size
        if size > LARGE and size > MOST_RATIO * packed:
            raise ValueError(f"column {column.path_in_schema} unpacks from {packed} bytes to {size}")
    stream.seek(0)
    repeated = {column.path_in_schema for column in _chunks(about) if _repeats(column)}
    return parquet.ParquetFile(stream, read_dictionary=sorted(name for name in repeated if "." not in name))


def _chunks(about: Any) -> Iterator[Any]:
    """What the metadata say of each column in each row group."""
    for group in map(about.row_group, range(about.num_row_groups)):
        yield from map(group.column, range(group.num_columns))


def _repeats(column: Any) -> bool:
    return column.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in one for one in column.encodings)


def _rows_at_once(about: Any) -> int:
    """So many that the values inside of structs, which are read as often as they are repeated, have room."""
    repeated = [column for column in _chunks(about) if _repeats(column) and "." in column.path_in_schema]
    largest = max((int(column.total_uncompressed_size) for column in repeated), default=1)
    return max(1, min(ROWS_AT_ONCE, LARGE // largest))


def rows(location: str) -> Iterator[tuple[ScannedFile, dict[str, Any]]]:
    """Images by their names, or the number of their row, each with the other columns."""
    with open_stream(location, seekable=True) as stream, open_table(stream) as table:
        schema = table.schema_arrow
        column = _column(schema, PICTURES, _holds_bytes)
        if column is None:
            raise ValueError(f"no column holds the bytes of images: {', '.join(schema.names)}")
        named = _column(schema, NAMES, lambda _: True)
        others = [name for name in schema.names if name == column or not _holds_bytes(schema.field(name).type)]
        number = 0
        for batch in table.iter_batches(batch_size=_rows_at_once(table.metadata), columns=others):
            for index in range(batch.num_rows):  # one at a time: a dictionary's value may be large, and in all rows
                row = {name: values[index].as_py() for name, values in zip(others, batch.columns, strict=True)}
                yield _row(row, column, named, number)
                number += 1


def _row(row: dict[str, Any], column: str, named: str | None, number: int) -> tuple[ScannedFile, dict[str, Any]]:
    picture: Any = row.pop(column)
    inner = None
    if isinstance(picture, dict):
        picture, inner = picture.get("bytes"), picture.get("path")
    given = row.pop(named) if named else None
    name = str(next((one for one in (given, inner) if one is not None), f"{number:08}"))
    about = {key: value for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
    if not picture:
        return ScannedFile(name, "", 0, problem=ValueError("the row holds no bytes")), about
    return ScannedFile(name, "", len(picture), data=picture), about


def _column(schema: Any, usual: Sequence[str], fits: Callable[[Any], bool]) -> str | None:
    return next((name for name in usual if name in schema.names and fits(schema.field(name).type)), None)


def _holds_bytes(kind: Any) -> bool:
    """Binary, or a struct with bytes in it, as the hub's datasets have."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
