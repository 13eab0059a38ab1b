"""Create and drop indexes. The model's row, which says which index searches use, is not touched here.

The names of indexes and their statements come from SQL (``sql/12_embedding_tables.sql``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pgimgsearch.database.connection import Connection, translate
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.retry import with_lock_retries
from pgimgsearch.indexing.embedding_table import EmbeddingTable, live_table, partition_names
from pgimgsearch.indexing.progress import watch_progress
from pgimgsearch.reporter import Reporter

IN_USE, BUILDING, REPLACED = "", "__new", "__old"  # stages of an index, as its name tells

BITS = "select imgsearch._create_bits_function(m, %s, %s) from imgsearch.model m where m.model_id = %s"
DEFINITION = """
select imgsearch._index_definition(m, %(method)s, %(state)s, %(relation)s, %(name)s, %(concurrently)s)
from imgsearch.model m where m.model_id = %(model)s
"""
DROP_BITS = "select imgsearch._drop_bits_functions(m) from imgsearch.model m where m.model_id = %s"


@contextmanager
def index_build(
    connection: Connection, model: StoredModel, table: EmbeddingTable, memory: int, workers: int | None,
    reporter: Reporter,
) -> Iterator[None]:  # fmt: skip
    """Build an index in this block: with megabytes and processes, reported, and leaving nothing behind on failure."""
    with (
        _settings(connection, memory, workers),
        watch_progress(connection, reporter),
        _no_leftovers(connection, model, table),
    ):
        yield


def create_index(
    connection: Connection, model: StoredModel, table: EmbeddingTable, method: str, state: dict[str, Any], *,
    stage: str, concurrently: bool,
) -> None:  # fmt: skip
    """Create an index of a table; ``state`` is what the model's row will hold of it, to which ``bits`` is added.

    The indexes of partitions are built one by one, so that memory holds one graph, and attached to one of the parent.
    """
    if method == "hnsw-binary":
        state["bits"] = _value(connection, BITS, [table.name, state["rows"], model.model_id])
    whole = _index_name(connection, table.name, method, stage)
    if table.partitions == 1:
        _create(connection, model, method, state, table.identifier, whole, concurrently=concurrently)
        return
    parent = sql.SQL("only {}").format(table.identifier)
    _create(connection, model, method, state, parent, whole, concurrently=False)
    for partition in partition_names(connection, table.name):
        name = _index_name(connection, partition, method, stage)
        relation = sql.Identifier("imgsearch", partition)
        _create(connection, model, method, state, relation, name, concurrently=concurrently)
        connection.execute(sql.SQL("alter index {} attach partition {}").format(_qualified(whole), _qualified(name)))


def drop_indexes(connection: Connection, table: EmbeddingTable, *stages: str) -> None:
    """Drop the indexes of a table that are in one of these stages.

    Concurrently, as a plain drop waits for all readers, and later readers wait for it. Postgres cannot drop an index
    over partitions like that: it goes in short attempts, and takes those of the partitions with it.
    """
    rows = connection.execute(
        "select i.name, i.over_partitions from imgsearch._indexes(to_regclass(format('imgsearch.%%I', %s::text))) i "
        "where i.stage = any(%s)",
        [table.name, list(stages)],
    ).fetchall()
    for name, over_partitions in rows:
        if over_partitions:
            with_lock_retries(connection, sql.SQL("drop index if exists {}").format(_qualified(name)))
        else:
            connection.execute(sql.SQL("drop index concurrently if exists {}").format(_qualified(name)))


def drop_leftovers(connection: Connection, model: StoredModel, table: EmbeddingTable) -> None:
    """Drop what earlier builds left: unfinished and replaced indexes of a table, and functions for the bits of those.

    The function of a replaced index stays until here, for queries that read the model's row before.
    """
    unfinished = (BUILDING, REPLACED) if table == live_table(model) else (IN_USE, BUILDING, REPLACED)
    drop_indexes(connection, table, *unfinished)
    connection.execute(DROP_BITS, [model.model_id])


def _create(
    connection: Connection, model: StoredModel, method: str, state: dict[str, Any], relation: sql.Composable, name: str,
    *, concurrently: bool,
) -> None:  # fmt: skip
    statement = _value(
        connection, DEFINITION,
        {"method": method, "state": psycopg.types.json.Jsonb(state), "relation": relation.as_string(connection),
         "name": name, "concurrently": concurrently, "model": model.model_id},
    ).encode()  # fmt: skip
    try:
        connection.execute(statement)
    except (pg.DiskFull, pg.OutOfMemory) as error:
        if "shared memory" not in str(error):
            raise
        # too little for parallel workers, as in a container: build without them
        connection.execute(sql.SQL("drop index concurrently if exists {}").format(_qualified(name)))
        connection.execute("set max_parallel_maintenance_workers = 0")
        connection.execute(statement)


def _value(connection: Connection, query: Any, values: Any) -> Any:
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return row[0]


def _index_name(connection: Connection, table: str, method: str, stage: str) -> str:
    return str(_value(connection, "select imgsearch._index_name(%s, %s, %s)", [table, method, stage]))


def _qualified(name: str) -> sql.Identifier:
    return sql.Identifier("imgsearch", name)


@contextmanager
def _no_leftovers(connection: Connection, model: StoredModel, table: EmbeddingTable) -> Iterator[None]:
    """Drop what a failed build leaves, as it takes disk and slows writers down, and say so in the error."""
    try:
        yield
    except BaseException as error:  # Ctrl-C too
        fate = "was dropped"
        try:
            connection.execute("set lock_timeout = '5s'")
            drop_leftovers(connection, model, table)
        except psycopg.Error:  # the connection is gone, or others hold a lock
            fate = "will be dropped by the next build"
        if not connection.closed:
            connection.execute("reset lock_timeout")
        if not isinstance(error, psycopg.Error):
            raise
        cause = translate(error)
        raise type(cause)(
            f"the index of {model.name} was not built, and its unfinished part {fate}: {cause}", hint=cause.hint
        ) from error


@contextmanager
def _settings(connection: Connection, memory: int, workers: int | None) -> Iterator[None]:
    """Memory and workers for a build, restored afterwards."""
    connection.execute("select set_config('maintenance_work_mem', %s, false)", [f"{memory}MB"])
    if workers is not None:  # the session itself is one of them
        connection.execute("select set_config('max_parallel_maintenance_workers', %s, false)", [str(workers - 1)])
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("reset maintenance_work_mem")
            connection.execute("reset max_parallel_maintenance_workers")
