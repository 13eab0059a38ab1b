"""Out of the database: vectors are read by binary COPY, many rows at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.ingest.write import COPY_HEADER

ROWS_AT_ONCE = 10_000


def read_vectors(
    connection: Connection, model: StoredModel, limit: int | None = None, contents: Sequence[int] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Rows of a model's table as (content_id, (n, dim) float32); at random with a limit. Bits become -1 and 1."""
    which = sql.SQL("order by random() limit {}").format(sql.Literal(limit)) if limit else sql.SQL("")
    if contents is not None:
        which = sql.SQL("where content_id = any({}::bigint[]) {}").format(sql.Literal(list(contents)), which)
    query = sql.SQL("copy (select content_id, embedding from {} {}) to stdout (format binary)").format(
        model.table, which
    )
    row, kept = _row(model), bytearray()
    with connection.cursor().copy(query) as copy:
        to_skip = len(COPY_HEADER)
        for data in copy:
            kept += bytes(data)[to_skip:]
            to_skip = max(0, to_skip - len(data))
            if len(kept) >= ROWS_AT_ONCE * row.itemsize:
                yield _parse(kept, row, model)
    if len(kept) >= row.itemsize:
        yield _parse(kept, row, model)


def _row(model: StoredModel) -> np.dtype[np.void]:
    """A row of COPY (PostgreSQL: sql-copy, "Binary Format"; pgvector: halfvec_send, vector_send; bit_send)."""
    if model.storage == "bit":
        value = [("dim", ">i4"), ("values", "u1", (model.dim // 8,))]
    else:
        number = ">f2" if model.storage == "halfvec" else ">f4"
        value = [("dim", ">i2"), ("unused", ">i2"), ("values", number, (model.dim,))]
    return np.dtype([("fields", ">i2"), ("length_1", ">i4"), ("content_id", ">i8"), ("length_2", ">i4"), *value])


def _parse(
    kept: bytearray, row: np.dtype[np.void], model: StoredModel
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Take the whole rows out of a buffer."""
    size = len(kept) // row.itemsize * row.itemsize
    rows = np.frombuffer(bytes(kept[:size]), row)
    del kept[:size]
    values = rows["values"]
    if model.storage == "bit":
        values = np.unpackbits(values, axis=1).astype(np.float32) * 2 - 1
    return rows["content_id"].astype(np.int64), values.astype(np.float32)
