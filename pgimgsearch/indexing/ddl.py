"""One index made or dropped. The model's row, which says what answers, is not touched here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from pgimgsearch.database.connection import Connection, translate, vector_schema
from pgimgsearch.database.models import StoredModel
from pgimgsearch.indexing import binary_quantization as bits
from pgimgsearch.indexing.index_names import BUILDING, OLD, SUFFIXES, index_name, named, names, partitions
from pgimgsearch.indexing.methods import indexed_as
from pgimgsearch.indexing.progress import Progress, reported

OPERATOR_CLASSES = {"halfvec": "halfvec_cosine_ops", "vector": "vector_cosine_ops", "bit": "bit_hamming_ops"}
OPTIONS = {"m", "ef_construction", "lists", "num_neighbors"}


@contextmanager
def making(
    connection: Connection, model: StoredModel, memory: int, workers: int | None, report: Progress | None
) -> Iterator[None]:
    """Make an index in a block: with so many megabytes and processes, watched, and leaving nothing where it fails."""
    with _settings(connection, memory, workers), reported(connection, report), _no_leftover(connection, model):
        yield


def create(
    connection: Connection, model: StoredModel, method: str, noted: dict[str, Any], *, concurrently: bool = False
) -> None:
    """Create a model's index under the name of one that is being built; ``noted`` has its parameters.

    The function of the bits is made first, and noted too. Of a table in partitions they are made one by one, so that
    memory holds one graph, and one over all that they belong to.
    """
    options = {name: value for name, value in noted.items() if name in OPTIONS}
    if method == "hnsw-binary":
        noted["bits"] = bits.make_function(connection, model, noted["rows"])
    function = noted.get("bits")
    new = index_name(model, method) + BUILDING
    if model.partitions == 1:
        _create_one(connection, model, method, options, function, model.table, new, concurrently=concurrently)
        return
    whole = sql.SQL("only {}").format(model.table)
    _create_one(connection, model, method, options, function, whole, new, concurrently=False)
    for part in partitions(connection, model):
        own = part + SUFFIXES[method] + BUILDING
        _create_one(connection, model, method, options, function, named(part), own, concurrently=concurrently)
        connection.execute(sql.SQL("alter index {} attach partition {}").format(named(new), named(own)))


def _create_one(
    connection: Connection, model: StoredModel, method: str, options: dict[str, int], function: str | None,
    table: sql.Composable, name: str, *, concurrently: bool,
) -> None:  # fmt: skip
    statement = sql.SQL("create index {} {} on {} using {} ({}) with ({})").format(
        sql.SQL("concurrently" if concurrently else ""),
        sql.Identifier(name),
        table,
        sql.SQL("hnsw" if method == "hnsw-binary" else method),
        _sorted_by(connection, model, method, function),
        sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in options.items()
        ),
    )
    try:
        connection.execute(statement)
    except (pg.DiskFull, pg.OutOfMemory) as error:
        if "shared memory" not in str(error):
            raise
        connection.execute(sql.SQL("drop index concurrently if exists {}").format(named(name)))
        connection.execute("set max_parallel_maintenance_workers = 0")
        connection.execute(statement)


def _sorted_by(connection: Connection, model: StoredModel, method: str, function: str | None) -> sql.Composable:
    """What an index is on, as imgsearch._sorted_by asks for it, and by which operators."""
    schema, dim = sql.SQL(vector_schema(connection)), sql.Literal(model.dim)
    if method == "diskann":  # its own operators are those it takes by default
        return sql.SQL("({schema}.l2_normalize(embedding)::{schema}.vector({dim}))").format(schema=schema, dim=dim)
    operators = sql.SQL(OPERATOR_CLASSES[indexed_as(model, method)])
    indexed = bits.expression(function, model.dim) if function else sql.SQL("embedding")
    return sql.SQL("{} {}.{}").format(indexed, schema, operators)


@contextmanager
def _no_leftover(connection: Connection, model: StoredModel) -> Iterator[None]:
    """What a failed build has left, which would take disk and slow writers down, is dropped and said."""
    try:
        yield
    except BaseException as error:  # Ctrl-C too
        what = "is dropped"
        try:
            connection.execute("set lock_timeout = '5s'")
            drop_leftovers(connection, model)
        except psycopg.Error:  # the connection is gone, or others hold on to it
            what = "will be dropped by the next build"
        if not connection.closed:
            connection.execute("reset lock_timeout")
        if not isinstance(error, psycopg.Error):
            raise
        told = translate(error)
        raise type(told)(
            f"the index of {model.name} was not built, and what there was of it {what}: {told}", hint=told.hint
        ) from error


def drop_leftovers(connection: Connection, model: StoredModel) -> None:
    """What builds have left: an index that was not finished, or the one before it, and functions for the bits of those.

    The function of an index that was swapped stays until here, for those who read the model's row before that.
    """
    drop_indexes(connection, model, BUILDING)
    drop_indexes(connection, model, OLD)
    bits.drop_functions(connection, model)


def drop_indexes(connection: Connection, model: StoredModel, end: str = "") -> None:
    """Concurrently: a plain drop waits for all who read the table, and all who come after wait for it.

    Postgres cannot so drop one over partitions, which goes in short tries, and takes those of its partitions along.
    """
    for name in names(connection, model):
        over_all = model.partitions > 1 and name.startswith(model.table_name)
        if over_all:
            patiently(connection, sql.SQL("drop index if exists {}").format(named(name + end)))
        else:
            connection.execute(sql.SQL("drop index concurrently if exists {}").format(named(name + end)))


def patiently(connection: Connection, *statements: sql.Composed, seconds: float = 30) -> None:
    """Run a transaction that waits for all who read, in tries so short that nobody has to wait long for it."""
    tries = Retrying(
        retry=retry_if_exception_type(pg.LockNotAvailable), wait=wait_exponential(multiplier=0.25, max=15),
        stop=stop_after_delay(seconds), reraise=True,
    )  # fmt: skip
    for attempt in tries:
        with attempt, connection.transaction():
            connection.execute("set transaction isolation level read committed")  # to see what came before its locks
            connection.execute("set local lock_timeout = '200ms'")
            for statement in statements:
                connection.execute(statement)


@contextmanager
def _settings(connection: Connection, memory: int, workers: int | None) -> Iterator[None]:
    """Memory and workers for a build, put back afterwards."""
    connection.execute("select set_config('maintenance_work_mem', %s, false)", [f"{memory}MB"])
    if workers is not None:  # the session itself is one of them
        connection.execute("select set_config('max_parallel_maintenance_workers', %s, false)", [str(workers - 1)])
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("reset maintenance_work_mem")
            connection.execute("reset max_parallel_maintenance_workers")
