"""Staged vectors: a temporary table that is filled by binary COPY and inserted into a model's table."""

from typing import Any

from numpy.typing import NDArray
from psycopg import sql

from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings.binary_copy import encode_rows

INSERT = """
insert into {table} (content_id, embedding)
select s.content_id, s.embedding from {staging} s
where exists (select from imgsearch.content c where c.content_id = s.content_id)
order by s.content_id on conflict (content_id) do nothing
"""


def create_staging(connection: Connection, model: StoredModel, name: str, key: str = "content_id int8") -> None:
    """Create the temporary table ``name`` for vectors of a model, whose rows go with each commit."""
    kind = "bit" if model.storage == "bit" else f"{vector_schema(connection)}.{model.storage}"
    connection.execute(
        sql.SQL("create temporary table {} ({}, embedding {}({})) on commit delete rows").format(
            sql.Identifier(name),
            sql.SQL(key),
            sql.SQL(kind),
            sql.Literal(model.dim),
        )
    )


def stage_vectors(connection: Connection, name: str, keys: NDArray[Any], vectors: NDArray[Any], dim: int) -> None:
    """COPY vectors into a staging table; keys and vectors as ``encode_rows`` takes them."""
    statement = sql.SQL("copy {} from stdin (format binary)").format(sql.Identifier(name))
    with connection.cursor().copy(statement) as copy:
        copy.write(encode_rows(keys, vectors, dim))


def insert_staged(connection: Connection, name: str, table: sql.Identifier) -> None:
    """Insert staged vectors by content_id; contents that were removed meanwhile are left out, present vectors stay."""
    connection.execute(sql.SQL(INSERT).format(table=table, staging=sql.Identifier(name)))


def drop_staging(connection: Connection, name: str) -> None:
    """Drop a staging table."""
    connection.execute(sql.SQL("drop table {}").format(sql.Identifier(name)))
