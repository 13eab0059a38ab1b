"""Bits of vectors, for an index of method hnsw-binary: which elements lie above the mean of what is stored."""

from contextlib import suppress

from psycopg import errors as pg
from psycopg import sql

from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.models import StoredModel

SAMPLE = 10_000

# The mean is a part of the function, so that index and question are cut alike. plpgsql, as a function in SQL would be
# put into every query with all its numbers.
FUNCTION = """
create function {function}(embedding {schema}.{kind}) returns bit varying
language plpgsql immutable strict parallel safe as {body}
"""
BODY = """
begin
    return {schema}.binary_quantize({schema}.l2_normalize(embedding) OPERATOR({schema}.-) {mean}::{schema}.{kind});
end
"""
MEAN = """
select coalesce((select {schema}.avg({schema}.l2_normalize(e.embedding)) from {table} e tablesample system ({percent})),
    array_fill(0::real, array[{dim}])::{schema}.{kind})::text
"""
FUNCTIONS = """
select p.proname from pg_proc p where p.pronamespace = 'imgsearch'::regnamespace and p.proname ~ %s
and p.proname is distinct from (select m.index_parameters ->> 'bits' from imgsearch.model m where m.model_id = %s)
"""


def make_function(connection: Connection, model: StoredModel, rows: int) -> str:
    """Make a function that cuts a model's vectors into bits, with the mean of a sample of now. Returns its name.

    The bits of a non-negative feature, such as a ResNet's, are all one without the mean.
    """
    last = str(model.index_parameters.get("bits", "0"))
    name = f"_bits_{model.model_id}_{int(last.rpartition('_')[2]) + 1}"
    schema, kind = sql.SQL(vector_schema(connection)), sql.SQL(model.storage)
    mean = connection.execute(
        sql.SQL(MEAN).format(
            schema=schema, kind=kind, table=model.table, dim=sql.Literal(model.dim),
            percent=sql.Literal(min(100.0, 100 * SAMPLE / max(rows, 1))),
        )
    ).fetchone()  # fmt: skip
    assert mean is not None
    body = sql.SQL(BODY).format(schema=schema, kind=kind, mean=sql.Literal(mean[0])).as_string(connection)
    function = sql.Identifier("imgsearch", name)
    with connection.transaction():
        made = sql.SQL(FUNCTION).format(schema=schema, kind=kind, function=function, body=sql.Literal(body))
        connection.execute(made)
        # whoever reads or writes the table calls it
        connection.execute(sql.SQL("grant execute on function {} to public").format(function))
        owner = connection.execute(
            "select quote_ident(pg_get_userbyid(relowner)) from pg_class where oid = %s::regclass",
            [f"imgsearch.{model.table_name}"],
        ).fetchone()
        assert owner is not None
        connection.execute(sql.SQL("alter function {} owner to {}").format(function, sql.SQL(owner[0])))
    return name


def drop_functions(connection: Connection, model: StoredModel) -> None:
    """Drop the functions that the model's index is not on."""
    for (name,) in connection.execute(FUNCTIONS, [f"^_bits_{model.model_id}_[0-9]+$", model.model_id]).fetchall():
        with suppress(pg.DependentObjectsStillExist):  # one that could not be dropped yet
            connection.execute(sql.SQL("drop function if exists {}").format(sql.Identifier("imgsearch", name)))


def expression(function: str, dim: int) -> sql.Composed:
    """What the index is on, as imgsearch._sorted_by writes it."""
    return sql.SQL("({}(embedding)::bit({}))").format(sql.Identifier("imgsearch", function), sql.Literal(dim))
