"""Bits of vectors, for an index of method hnsw-binary: which elements lie above the mean of what is stored."""

from contextlib import suppress

from psycopg import errors as pg
from psycopg import sql

from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.store import StoredModel

SAMPLE = 10_000

# The mean is a part of the function, so that index and question are cut alike. plpgsql, as a function in SQL would be
# put into every query with all its numbers.
FUNCTION = """
create function imgsearch.{function}(embedding {schema}.{kind}) returns bit varying
language plpgsql immutable strict parallel safe as {body}
"""
BODY = """
begin
    return {schema}.binary_quantize({schema}.l2_normalize(embedding) OPERATOR({schema}.-) {mean}::{schema}.{kind});
end
"""
MEAN = """
select coalesce((select {schema}.avg({schema}.l2_normalize(e.embedding)) from (
    select embedding from imgsearch.{table} tablesample system ({percent}) limit {sample}) e),
    array_fill(0::real, array[{dim}])::{schema}.{kind})::text
"""


def function_name(model: StoredModel) -> str:
    """The name of the function that an index of a model is on, as imgsearch._sorted_by writes it."""
    return f"_bits_{model.slug}_{model.dim}"


def make_function(connection: Connection, model: StoredModel, rows: int) -> None:
    """Make the function that cuts a model's vectors into bits, with the mean of now; one that is in use stays.

    The bits of a non-negative feature, such as a ResNet's, are all one without the mean.
    """
    if connection.execute("select to_regproc(%s)", [f"imgsearch.{function_name(model)}"]).fetchone() != (None,):
        return
    schema, kind = sql.SQL(vector_schema(connection)), sql.SQL(model.storage)
    drawn = min(100.0, 400 * SAMPLE / max(rows, 1))
    mean = connection.execute(
        sql.SQL(MEAN).format(
            schema=schema, kind=kind, table=sql.Identifier(model.table_name), dim=sql.Literal(model.dim),
            percent=sql.Literal(drawn), sample=sql.Literal(SAMPLE),
        )
    ).fetchone()  # fmt: skip
    assert mean is not None
    body = sql.SQL(BODY).format(schema=schema, kind=kind, mean=sql.Literal(mean[0])).as_string(connection)
    function = sql.Identifier(function_name(model))
    connection.execute(sql.SQL(FUNCTION).format(schema=schema, kind=kind, function=function, body=sql.Literal(body)))


def drop_function(connection: Connection, model: StoredModel) -> None:
    """Drop the function, unless an index is on it."""
    function = sql.Identifier("imgsearch", function_name(model))
    with suppress(pg.DependentObjectsStillExist):
        connection.execute(sql.SQL("drop function if exists {}").format(function))


def expression(model: StoredModel) -> sql.Composed:
    """What the index is on."""
    return sql.SQL("(imgsearch.{}(embedding)::bit({}))").format(
        sql.Identifier(function_name(model)), sql.Literal(model.dim)
    )
