"""Indexes: built after the load, in one go, with the memory that they need, and measured before they answer."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from pgimgsearch.database import bits, locks, recall
from pgimgsearch.database.connection import Connection, translate, vector_schema
from pgimgsearch.database.index_names import BUILDING, OLD, SUFFIXES, index_name, named, names, partitions
from pgimgsearch.database.index_progress import Progress, reported
from pgimgsearch.database.sizing import (
    LEAST_ROWS,
    indexed_as,
    is_too_few,
    memory_for,
    method_of,
    needs_rows,
    parameters,
)
from pgimgsearch.database.store import StoredModel, count_embeddings, get_model
from pgimgsearch.errors import ModelError, RecallError

OPERATOR_CLASSES = {"halfvec": "halfvec_cosine_ops", "vector": "vector_cosine_ops", "bit": "bit_hamming_ops"}


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


def is_wanted(model: StoredModel) -> bool:
    """Whether a model shall have an index, and can."""
    return method_of(model) != "none"


def is_fulfilled(model: StoredModel) -> bool:
    """Whether a model's index is as it is wanted (see ``imgsearch.set_index``)."""
    method = method_of(model)
    if model.index_method != method or method in {"none", "ivfflat"}:
        return model.index_method == method
    return parameters(model, method, 0, 0).items() <= model.index_parameters.items()


def is_due(connection: Connection, model: StoredModel) -> bool:
    """Whether a model without an index should get one now; of bits that were refused, once its rows have doubled."""
    if model.index_method != "none" or not is_wanted(model):
        return False
    refused = int(model.index_parameters.get("refused", 0))
    if not refused and not needs_rows(model):  # a graph takes any number, and a count reads the whole table
        return True
    rows = count_embeddings(connection, model)
    return not is_too_few(model, rows) and rows >= 2 * refused


def fulfil(connection: Connection, model: StoredModel, wish: Build, report: Progress | None = None) -> bool:
    """Make a model's index as it is wanted, if it is not. Returns whether that took anything; raises like ``build``.

    Where there are too few rows for it, what there is stays.
    """
    with _alone(connection, model):
        now = get_model(connection, model.name)  # another session may have been at it just before
        if is_fulfilled(now) or (needs_rows(now) and is_too_few(now, count_embeddings(connection, now))):
            _drop_leftovers(connection, now)
            return False
        if is_wanted(now):
            _build(connection, now, wish, report)
        else:
            drop(connection, now)
        return True


def build(
    connection: Connection, model: StoredModel, wish: Build, report: Progress | None = None, method: str | None = None
) -> Built | None:
    """Build a model's index anew, as it is wanted or by another ``method``; drop it where none is. ANALYZE included.

    The leftover of a killed build is dropped first, that of a failed one at once, and the error says so. Where shared
    memory is too small for parallel workers, as in a container, it is built without them. An index that bits are to
    replace stays until they were measured. Raises BusyError where another session builds it, RecallError where bits
    find too little or rows are too few, ModelError where nothing can index so many dimensions.
    """
    with _alone(connection, model):
        model = get_model(connection, model.name)  # another session may have been at it just before
        if method is not None:
            model = replace(model, index_wanted=model.index_wanted | {"method": method})
        if not is_wanted(model) and model.index_wanted["method"] != "none":
            raise ModelError(
                f"pgvector cannot index {model.dim} dimensions of {model.storage}",
                hint="searches stay exact; choose a smaller model for a large collection",
            )
        if method_of(model) == "hnsw-binary" and model.storage == "bit":
            raise ModelError(f"{model.name} stores bits already", hint="its method is hnsw")
        if not is_wanted(model):
            drop(connection, model)
            return None
        return _build(connection, model, wish, report)


def _alone(connection: Connection, model: StoredModel) -> AbstractContextManager[None]:
    return locks.alone(connection, locks.INDEX, model.model_id, f"another session builds the index of {model.name}")


def _build(connection: Connection, model: StoredModel, wish: Build, report: Progress | None) -> Built:
    method, rows = method_of(model), count_embeddings(connection, model)
    if is_too_few(model, rows):
        raise RecallError(
            f"{rows} vectors are too few for an index of method {method}",
            hint=f"searches read all of them; build it again from {LEAST_ROWS} on, or: pgimgsearch index build "
            f"{model.name} --method hnsw",
        )
    options = parameters(model, method, rows // model.partitions, wish.memory_limit)
    memory = memory_for(rows // model.partitions, model, method, wish.memory_limit)
    noted: dict[str, Any] = options | {"rows": rows, "wanted": wish.recall}
    found = None
    _drop_leftovers(connection, model)
    if not wish.concurrently and model.index_method == method:
        drop(connection, model)
    with _settings(connection, memory, wish.workers), reported(connection, report), _no_leftover(connection, model):
        if method == "hnsw-binary":
            noted["bits"] = bits.make_function(connection, model, rows)
        _create(connection, model, method, options, noted.get("bits"), concurrently=wish.concurrently)
        if method == "hnsw-binary" and model.index_method != method:
            found = recall.reached(connection, model, method, noted)
    if method != "hnsw-binary" and model.index_method not in {"none", method}:
        drop(connection, model)  # it sorts by the same, so that the planner might ask it in place of the new one
    _swap(connection, model, method, noted, recall.first_effort(model, method) if found is None else found.ef_search)
    found = found or recall.reached(connection, model, method, noted)
    connection.execute(
        "update imgsearch.model set ef_search = %s, index_parameters = index_parameters || %s where model_id = %s",
        [found.ef_search, Jsonb({"recall": found.recall}), model.model_id],
    )
    connection.execute(sql.SQL("analyze {}").format(model.table))
    return Built(method, memory, found.ef_search, found.recall)


def _create(
    connection: Connection, model: StoredModel, method: str, options: dict[str, int], function: str | None, *,
    concurrently: bool,
) -> None:  # fmt: skip
    """Of a table in partitions one by one, so that memory holds one graph, and one over all that they belong to."""
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
    kind = indexed_as(model, method)
    statement = sql.SQL("create index {} {} on {} using {} ({} {}) with ({})").format(
        sql.SQL("concurrently" if concurrently else ""),
        sql.Identifier(name),
        table,
        sql.SQL("ivfflat" if method == "ivfflat" else "hnsw"),
        bits.expression(function, model.dim) if function else sql.SQL("embedding"),
        sql.SQL(f"{vector_schema(connection)}.{OPERATOR_CLASSES[kind]}"),
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


def _swap(connection: Connection, model: StoredModel, method: str, noted: dict[str, Any], ef_search: int) -> None:
    """Let the new index be the model's, and drop those before. Renaming waits for nobody who reads, nor they for it."""
    with connection.transaction():
        for name in names(connection, model):
            connection.execute(
                sql.SQL("alter index if exists {} rename to {}").format(named(name), sql.Identifier(name + OLD))
            )
        for name in names(connection, model, method):
            connection.execute(
                sql.SQL("alter index {} rename to {}").format(named(name + BUILDING), sql.Identifier(name))
            )
        connection.execute(
            "update imgsearch.model set index_method = %s, index_parameters = %s, index_wanted = index_wanted || %s, "
            "ef_search = %s where model_id = %s",
            [method, Jsonb(noted), Jsonb({"method": model.index_wanted["method"]}), ef_search, model.model_id],
        )
    with suppress(pg.LockNotAvailable):  # the new one serves already; db check and the next build see to what is left
        _drop_indexes(connection, model, OLD)


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
    """What builds have left: an index that was not finished, or the one before it, and functions for the bits of those.

    The function of an index that was swapped stays until here, for those who read the model's row before that.
    """
    _drop_indexes(connection, model, BUILDING)
    _drop_indexes(connection, model, OLD)
    bits.drop_functions(connection, model)


def _drop_indexes(connection: Connection, model: StoredModel, end: str = "") -> None:
    """Concurrently: a plain drop waits for all who read the table, and all who come after wait for it.

    Postgres cannot so drop one over partitions, which goes in short tries, and takes those of its partitions along.
    """
    for name in names(connection, model):
        over_all = model.partitions > 1 and name.startswith(model.table_name)
        if over_all:
            _drop_patiently(connection, named(name + end))
        else:
            connection.execute(sql.SQL("drop index concurrently if exists {}").format(named(name + end)))


@retry(
    retry=retry_if_exception_type(pg.LockNotAvailable), wait=wait_fixed(0.5), stop=stop_after_attempt(60), reraise=True
)
def _drop_patiently(connection: Connection, name: sql.Identifier) -> None:
    with connection.transaction():
        connection.execute("set local lock_timeout = '200ms'")
        connection.execute(sql.SQL("drop index if exists {}").format(name))


def drop(connection: Connection, model: StoredModel) -> None:
    """Drop a model's index, if there is one; searches are exact from then on."""
    connection.execute(
        "update imgsearch.model set index_method = 'none', "
        "index_parameters = jsonb_build_object('method', index_method) where model_id = %s and index_method <> 'none'",
        [model.model_id],
    )
    _drop_indexes(connection, model)


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
