"""Indexes: built after the load, in one go, with the memory that they need, and measured before they answer."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from pgimgsearch.database import bits, locks, recall
from pgimgsearch.database.connection import Connection, translate, vector_schema
from pgimgsearch.database.index_progress import Progress, reported
from pgimgsearch.database.sizing import indexed_as, memory_for, method_of, parameters
from pgimgsearch.database.store import StoredModel, count_embeddings, get_model
from pgimgsearch.errors import ModelError

OPERATOR_CLASSES = {"halfvec": "halfvec_cosine_ops", "vector": "vector_cosine_ops", "bit": "bit_hamming_ops"}
SUFFIXES = {"hnsw": "_hnsw", "hnsw-binary": "_bits", "ivfflat": "_ivf"}  # of an index's name
BUILDING, OLD = "_new", "_old"  # ends of an index's name while it is built, and when another has taken its place


@dataclass(frozen=True, slots=True)
class Build:
    """How to build: megabytes of memory at most, processes of the server (None: as it is set), what it must find.

    ``concurrently`` lets others write meanwhile, and keeps the old index in use until the new one is there.
    """

    memory_limit: int
    concurrently: bool = False
    workers: int | None = None
    recall: float = recall.RECALL


@dataclass(frozen=True, slots=True)
class Built:
    """What was built, with how many megabytes of memory, and the recall that was measured, of few vectors None."""

    method: str
    memory: int
    ef_search: int
    recall: float | None


def index_name(model: StoredModel, method: str | None = None) -> str:
    """The name of a model's index, without the schema; of the method that is wanted, unless told."""
    return model.table_name + SUFFIXES[method or method_of(model)]


def is_wanted(model: StoredModel) -> bool:
    """Whether a model shall have an index, and can."""
    return method_of(model) != "none"


def is_fulfilled(model: StoredModel) -> bool:
    """Whether a model's index is as it is wanted (see ``imgsearch.set_index``)."""
    method = method_of(model)
    if model.index_method != method or method in {"none", "ivfflat"}:
        return model.index_method == method
    return parameters(model, method, 0).items() <= model.index_parameters.items()


def fulfil(connection: Connection, model: StoredModel, wish: Build, report: Progress | None = None) -> bool:
    """Make a model's index as it is wanted, if it is not. Returns whether that took anything; raises like ``build``."""
    with _alone(connection, model):
        now = get_model(connection, model.name)  # another session may have been at it just before
        if is_fulfilled(now):
            _drop_leftovers(connection, now)
            return False
        if is_wanted(now):
            _build(connection, now, wish, report)
        else:
            drop(connection, now)
        return True


def build(connection: Connection, model: StoredModel, wish: Build, report: Progress | None = None) -> Built | None:
    """Build a model's index anew, as ``model.index_wanted`` says, or drop it where none is wanted; ANALYZE included.

    The leftover of a killed build is dropped first, that of a failed one at once, and the error says so. Where shared
    memory is too small for parallel workers, as in a container, it is built without them. An index of another method
    stays until the new one was measured. Raises BusyError where another session builds it, RecallError where bits find
    too little, ModelError where nothing can index so many dimensions.
    """
    if model.index_wanted["method"] != "none" and not is_wanted(model):
        raise ModelError(
            f"pgvector cannot index {model.dim} dimensions of {model.storage}",
            hint="searches stay exact; choose a smaller model for a large collection",
        )
    if method_of(model) == "hnsw-binary" and model.storage == "bit":
        raise ModelError(f"{model.name} stores bits already", hint="its method is hnsw")
    with _alone(connection, model):
        if not is_wanted(model):
            drop(connection, model)
            return None
        return _build(connection, model, wish, report)


def _alone(connection: Connection, model: StoredModel) -> AbstractContextManager[None]:
    return locks.alone(connection, "index", model.model_id, f"another session builds the index of {model.name}")


def _build(connection: Connection, model: StoredModel, wish: Build, report: Progress | None) -> Built:
    method, rows = method_of(model), count_embeddings(connection, model)
    memory = memory_for(rows // model.partitions, model, method, wish.memory_limit)
    built_with = parameters(model, method, rows // model.partitions)
    _drop_leftovers(connection, model)
    if not wish.concurrently and model.index_method == method:
        drop(connection, model)
    new_method, found = model.index_method != method, None
    with _settings(connection, memory, wish.workers), reported(connection, report), _no_leftover(connection, model):
        if method == "hnsw-binary":
            bits.make_function(connection, model, rows)
        _create(connection, model, method, built_with, concurrently=wish.concurrently)
        if new_method:
            found = recall.reached(connection, model, method, wish.recall, rows)
    _swap(connection, model, method, built_with, model.ef_search if found is None else found.ef_search)
    found = found or recall.reached(connection, model, method, wish.recall, rows)
    connection.execute(
        "update imgsearch.model set index_parameters = index_parameters || %s where model_id = %s",
        [Jsonb({"rows": rows, "recall": found.recall}), model.model_id],
    )
    connection.execute(sql.SQL("analyze {}").format(model.table))
    return Built(method, memory, found.ef_search, found.recall)


def _create(
    connection: Connection, model: StoredModel, method: str, built_with: dict[str, int], *, concurrently: bool
) -> None:
    """Of a table in partitions one by one, so that memory holds one graph, and one over all that they belong to."""
    new = index_name(model, method) + BUILDING
    if model.partitions == 1:
        _create_one(connection, model, method, built_with, model.table, new, concurrently=concurrently)
        return
    whole = sql.SQL("only {}").format(model.table)
    _create_one(connection, model, method, built_with, whole, new, concurrently=False)
    for part in partitions(connection, model):
        own = part + SUFFIXES[method] + BUILDING
        _create_one(connection, model, method, built_with, _named(part), own, concurrently=concurrently)
        connection.execute(sql.SQL("alter index {} attach partition {}").format(_named(new), _named(own)))


def _create_one(
    connection: Connection, model: StoredModel, method: str, built_with: dict[str, int], table: sql.Composable,
    name: str, *, concurrently: bool,
) -> None:  # fmt: skip
    kind = indexed_as(model, method)
    statement = sql.SQL("create index {} {} on {} using {} ({} {}) with ({})").format(
        sql.SQL("concurrently" if concurrently else ""),
        sql.Identifier(name),
        table,
        sql.SQL("ivfflat" if method == "ivfflat" else "hnsw"),
        bits.expression(model) if method == "hnsw-binary" else sql.SQL("embedding"),
        sql.SQL(f"{vector_schema(connection)}.{OPERATOR_CLASSES[kind]}"),
        sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in built_with.items()
        ),
    )
    try:
        connection.execute(statement)
    except (pg.DiskFull, pg.OutOfMemory) as error:
        if "shared memory" not in str(error):
            raise
        connection.execute(sql.SQL("drop index concurrently if exists {}").format(_named(name)))
        connection.execute("set max_parallel_maintenance_workers = 0")
        connection.execute(statement)


def _swap(connection: Connection, model: StoredModel, method: str, built_with: dict[str, int], ef_search: int) -> None:
    """Let the new index be the model's, and drop those before. Renaming waits for nobody who reads, nor they for it."""
    rename = sql.SQL("alter index if exists {} rename to {}")
    names = _names(connection, model)
    with connection.transaction():
        for name in names:
            connection.execute(rename.format(_named(name), sql.Identifier(name + OLD)))
        for name in names:
            connection.execute(rename.format(_named(name + BUILDING), sql.Identifier(name)))
        connection.execute(
            "update imgsearch.model set index_method = %s, index_parameters = %s, index_wanted = %s, ef_search = %s "
            "where model_id = %s",
            [method, Jsonb(built_with), Jsonb(model.index_wanted), ef_search, model.model_id],
        )
    _drop_leftovers(connection, model)


@contextmanager
def _no_leftover(connection: Connection, model: StoredModel) -> Iterator[None]:
    """What a failed build has left, which would take disk and slow writers down, is dropped and said."""
    try:
        yield
    except BaseException as error:  # Ctrl-C too
        what = "is dropped"
        try:
            connection.execute("set lock_timeout = '5s'")
            _drop_leftovers(connection, model)
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


def _drop_leftovers(connection: Connection, model: StoredModel) -> None:
    """What builds have left: one that was not finished, or the one before it, and the bits of none."""
    _drop_indexes(connection, model, BUILDING)
    _drop_indexes(connection, model, OLD)
    bits.drop_function(connection, model)


def _drop_indexes(connection: Connection, model: StoredModel, end: str = "") -> None:
    """Concurrently: a plain drop waits for all who read the table, and all who come after wait for it.

    Postgres cannot so drop one over partitions, which goes in short tries, and takes those of its partitions along.
    """
    for name in _names(connection, model):
        over_all = model.partitions > 1 and name.startswith(model.table_name)
        if over_all:
            _drop_patiently(connection, _named(name + end))
        else:
            connection.execute(sql.SQL("drop index concurrently if exists {}").format(_named(name + end)))


@retry(
    retry=retry_if_exception_type(pg.LockNotAvailable), wait=wait_fixed(0.5), stop=stop_after_attempt(20), reraise=True
)
def _drop_patiently(connection: Connection, name: sql.Identifier) -> None:
    with connection.transaction():
        connection.execute("set local lock_timeout = '2s'")
        connection.execute(sql.SQL("drop index if exists {}").format(name))


def partitions(connection: Connection, model: StoredModel) -> list[str]:
    """The tables that hold a model's vectors; of one in one piece that itself."""
    rows = connection.execute(
        "select c.relname from pg_partition_tree(%s::regclass) t join pg_class c on c.oid = t.relid "
        "where t.isleaf order by 1",
        [f"imgsearch.{model.table_name}"],
    ).fetchall()
    return [row[0] for row in rows] or [model.table_name]


def _names(connection: Connection, model: StoredModel) -> list[str]:
    """What its indexes may be named, of whatever method, those over partitions first."""
    tables = dict.fromkeys([model.table_name, *partitions(connection, model)])
    return [table + suffix for table in tables for suffix in SUFFIXES.values()]


def _named(name: str) -> sql.Identifier:
    return sql.Identifier("imgsearch", name)


def drop(connection: Connection, model: StoredModel) -> None:
    """Drop a model's index, if there is one; searches are exact from then on."""
    connection.execute("update imgsearch.model set index_method = 'none' where model_id = %s", [model.model_id])
    _drop_indexes(connection, model)
    bits.drop_function(connection, model)


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
