"""Read a model's vectors by binary COPY, many rows at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings.binary_copy import HEADER, decode_rows, stored_row_type

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
    row_bytes, buffer = stored_row_type(model.storage, model.dim).itemsize, bytearray()
    with connection.cursor().copy(query) as copy:
        to_skip = len(HEADER)
        for data in copy:
            buffer += bytes(data)[to_skip:]
            to_skip = max(0, to_skip - len(data))
            if len(buffer) >= ROWS_AT_ONCE * row_bytes:
                yield decode_rows(buffer, model.storage, model.dim)
    if len(buffer) >= row_bytes:
        yield decode_rows(buffer, model.storage, model.dim)
