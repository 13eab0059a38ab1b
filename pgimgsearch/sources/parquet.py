"""Parquet of images: a row an image, its bytes in one column, what is said of it in the others."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pgimgsearch.errors import ModelError
from pgimgsearch.sources.rows import with_caption
from pgimgsearch.sources.source import ScannedFile
from pgimgsearch.sources.storable import UnstorableRow
from pgimgsearch.sources.stream import open_stream

ROWS_AT_ONCE = 64
LARGE, MOST_RATIO = 256 << 20, 200  # bytes of a column in a row group, and how far images and their texts are packed
MOST_LIST_VALUES = 5_000_000  # in a row group
MOST_EMPTY, TINY = 10_000, 16  # rows without an image of so many bytes, each of which is a failure of its own
PICTURES = (  # columns, by their usual names
    "image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "photo", "data", "content",
)  # fmt: skip
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
    lists = {
        column.path for column in map(about.schema.column, range(len(about.schema))) if column.max_repetition_level
    }
    for column in _chunks(about):
        size, packed = column.total_uncompressed_size, column.total_compressed_size
        is_list = column.path_in_schema in lists
        if size > (LARGE >> 8 if is_list else LARGE) and size > MOST_RATIO * packed:
            raise ValueError(f"column {column.path_in_schema} unpacks from {packed} bytes to {size}")
        if is_list and column.num_values > MOST_LIST_VALUES:
            raise ValueError(f"column {column.path_in_schema} has lists of {column.num_values} values in a row group")
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
    return max(1, min(ROWS_AT_ONCE, LARGE // max(1, largest)))


def rows(
    location: str, image_column: str | None = None, caption_column: str | None = None
) -> Iterator[tuple[ScannedFile, dict[str, Any]]]:
    """Images by their names, or the number of their row, each with the other columns.

    The images are in ``image_column``, else in one of a usual name, else in the only one of bytes.
    """
    with open_stream(location, seekable=True) as stream, open_table(stream) as table:
        schema = table.schema_arrow
        column = image_column or _image_column(schema)
        for wanted in filter(None, (column, caption_column)):
            if wanted not in schema.names:
                raise ValueError(f"there is no column {wanted}: {', '.join(schema.names)}")
        named = next((name for name in NAMES if name in schema.names and name != column), None)
        others = [name for name in schema.names if name == column or not _has_bytes(schema.field(name).type)]
        number = empty = 0
        for batch in table.iter_batches(batch_size=_rows_at_once(table.metadata), columns=others):
            columns = list(zip(others, map(_in_microseconds, batch.columns), strict=True))
            for index in range(batch.num_rows):  # one at a time: a dictionary's value may be large, and in all rows
                row, problem = _row(columns, index)
                if caption_column is not None:
                    row["caption"] = row.pop(caption_column)
                for file, about in _images(row, column, named, number):
                    empty += len(file.data or b"") < TINY
                    if empty > MOST_EMPTY:
                        raise ValueError(f"more than {MOST_EMPTY} rows hold less than {TINY} bytes")
                    yield (file, about) if problem is None else (replace(file, problem=problem, data=None), {})
                number += 1


def _row(columns: Sequence[tuple[str, Any]], index: int) -> tuple[dict[str, Any], UnstorableRow | None]:
    """A row by column; and why it cannot be stored, where Python has no form for a value, as for the year 10,000."""
    row, problem = {}, None
    for name, values in columns:
        try:
            row[name] = values[index].as_py()
        except Exception as error:  # pyarrow raises many kinds
            row[name], problem = None, UnstorableRow(f"its {name} cannot be read: {error}")
    return row, problem


def _in_microseconds(values: Any) -> Any:
    """Times of nanoseconds in the resolution that Python has."""
    import pyarrow
    from pyarrow import types

    if not types.is_temporal(values.type) or getattr(values.type, "unit", None) != "ns":
        return values
    if types.is_timestamp(values.type):
        return values.cast(pyarrow.timestamp("us", values.type.tz), safe=False)
    return values.cast(pyarrow.duration("us") if types.is_duration(values.type) else pyarrow.time64("us"), safe=False)


def _image_column(schema: Any) -> str:
    holding = [name for name in schema.names if _holds_images(schema.field(name).type)]
    usual = [name for name in PICTURES if name in holding]
    if not holding:
        raise ValueError(f"no column holds the bytes of images: {', '.join(schema.names)}")
    if not usual and len(holding) > 1:
        raise ValueError(f"several columns hold bytes: {', '.join(holding)}; name one: --image-column NAME")
    return str([*usual, *holding][0])


def _images(
    row: dict[str, Any], column: str, named: str | None, number: int
) -> Iterator[tuple[ScannedFile, dict[str, Any]]]:  # fmt: skip
    """The image of a row, or all of a list of them."""
    held = row.pop(column)
    given = row.pop(named) if named else None
    about = with_caption(row)
    pictures = held if isinstance(held, list) else [held]
    for place, picture in enumerate(pictures or [None]):
        data, inner = (picture.get("bytes"), picture.get("path")) if isinstance(picture, dict) else (picture, None)
        name = str(next((one for one in (given, inner) if one is not None), f"{number:08}"))
        if place:
            name = f"{name}-{place}"
        if data:
            yield ScannedFile(name, "", len(data), data=data), about
        else:
            yield ScannedFile(name, "", 0, problem=ValueError("the row holds no bytes")), about


def _holds_images(kind: Any) -> bool:
    """Bytes, a struct with bytes in it, as the hub's datasets have, or a list or dictionary of those."""
    from pyarrow import types

    if types.is_dictionary(kind) or _is_list(kind):
        return _holds_images(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return _is_bytes(kind)


def _has_bytes(kind: Any) -> bool:
    """Whether there are bytes anywhere in a column, which metadata cannot hold."""
    from pyarrow import types

    if types.is_dictionary(kind) or _is_list(kind):
        return _has_bytes(kind.value_type)
    if types.is_map(kind):
        return _has_bytes(kind.item_type)
    if types.is_struct(kind):
        return any(_has_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(check(kind) for check in checks)
