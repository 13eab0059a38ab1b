"""Indexes: built after the load, in one go, with the memory that they need, and measured before they answer."""

from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any

from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection, has_diskann
from pgimgsearch.database.models import StoredModel, count_embeddings, get_model
from pgimgsearch.errors import ModelError, RecallError
from pgimgsearch.indexing import recall
from pgimgsearch.indexing.ddl import create, drop_indexes, drop_leftovers, making
from pgimgsearch.indexing.index_names import BUILDING, OLD, named, names
from pgimgsearch.indexing.methods import LEAST_ROWS, ROUGH, is_too_few, memory_for, method_of, needs_rows, parameters
from pgimgsearch.indexing.progress import Progress


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


@dataclass(frozen=True, slots=True)
class Draft:
    """An index before it is made: method, megabytes of memory, and what the model's row will note of it."""

    method: str
    memory: int
    noted: dict[str, Any]


def is_wanted(model: StoredModel) -> bool:
    """Whether a model shall have an index, and can."""
    return method_of(model) != "none"


def is_fulfilled(model: StoredModel) -> bool:
    """Whether a model's index is as it is wanted (see ``imgsearch.set_index``)."""
    method = method_of(model)
    if model.index_method != method or method in {"none", "ivfflat", "diskann"}:
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
    with alone(connection, model):
        now = get_model(connection, model.name)  # another session may have been at it just before
        if is_fulfilled(now) or (needs_rows(now) and is_too_few(now, count_embeddings(connection, now))):
            drop_leftovers(connection, now)
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
    memory is too small for parallel workers, as in a container, it is built without them. An index that a rough one is
    to replace stays until that was measured. Raises BusyError where another session builds it, RecallError where a
    rough one finds too little or rows are too few, ModelError where nothing can index so many dimensions.
    """
    with alone(connection, model):
        model = get_model(connection, model.name)  # another session may have been at it just before
        model = wishing(model, method)
        if not is_wanted(model):
            drop(connection, model)
            return None
        return _build(connection, model, wish, report)


def as_before(model: StoredModel, limit: int) -> Build:
    """A build that has to find what the one before had to."""
    return Build(limit, recall=model.index_parameters.get("wanted", recall.RECALL))


def wishing(model: StoredModel, method: str | None) -> StoredModel:
    """The model with the index that is wished for now; raises ModelError where it cannot have that."""
    if method is not None:
        model = replace(model, index_wanted=model.index_wanted | {"method": method})
    if not is_wanted(model) and model.index_wanted["method"] != "none":
        raise ModelError(
            f"pgvector cannot index {model.dim} dimensions of {model.storage}",
            hint="searches stay exact; choose a smaller model for a large collection",
        )
    if method_of(model) in ROUGH and model.storage == "bit":
        raise ModelError(f"{model.name} stores bits already", hint="its method is hnsw")
    return model


def alone(connection: Connection, model: StoredModel) -> AbstractContextManager[None]:
    """Be the only session at a model's index and table for a block; raises BusyError where another is."""
    return locks.alone(connection, locks.INDEX, model.model_id, f"another session builds the index of {model.name}")


def drafted(connection: Connection, model: StoredModel, wish: Build) -> Draft:
    """What the wanted index of a model's rows will be; raises RecallError where they are too few for it, and ModelError
    where the server has nothing to make it with.
    """
    method, rows = method_of(model), count_embeddings(connection, model)
    if method == "diskann" and not has_diskann(connection):
        raise ModelError(
            f"database {connection.info.dbname} has no pgvectorscale, whose index is wished for {model.name}",
            hint="as an administrator run: create extension vectorscale; or choose another: pgimgsearch index build "
            f"{model.name} --method auto",
        )
    if is_too_few(model, rows):
        raise RecallError(
            f"{rows} vectors are too few for an index of method {method}",
            hint=f"searches read all of them; build it again from {LEAST_ROWS} on, or: pgimgsearch index build "
            f"{model.name} --method hnsw",
        )
    memory = memory_for(rows // model.partitions, model, method, wish.memory_limit)
    options = parameters(model, method, rows // model.partitions, wish.memory_limit)
    return Draft(method, memory, options | {"rows": rows, "wanted": wish.recall})


def _build(connection: Connection, model: StoredModel, wish: Build, report: Progress | None) -> Built:
    draft = drafted(connection, model, wish)
    method, noted, found = draft.method, draft.noted, None
    drop_leftovers(connection, model)
    if not wish.concurrently and model.index_method == method:
        drop(connection, model)
    with making(connection, model, draft.memory, wish.workers, report):
        create(connection, model, method, noted, concurrently=wish.concurrently)
        if method in ROUGH and model.index_method != method:
            found = recall.reached(connection, model, method, noted)
    if method not in ROUGH and model.index_method not in {"none", method}:
        drop(connection, model)  # it sorts by the same, so that the planner might ask it in place of the new one
    _swap(connection, model, method, noted, recall.first_effort(model, method) if found is None else found.ef_search)
    found = found or recall.reached(connection, model, method, noted)
    connection.execute(
        "update imgsearch.model set ef_search = %s, index_parameters = index_parameters || %s where model_id = %s",
        [found.ef_search, Jsonb({"recall": found.recall}), model.model_id],
    )
    connection.execute(sql.SQL("analyze {}").format(model.table))
    return Built(method, draft.memory, found.ef_search, found.recall)


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
        drop_indexes(connection, model, OLD)


def drop(connection: Connection, model: StoredModel) -> None:
    """Drop a model's index, if there is one; searches are exact from then on."""
    connection.execute(
        "update imgsearch.model set index_method = 'none', "
        "index_parameters = jsonb_build_object('method', index_method) where model_id = %s and index_method <> 'none'",
        [model.model_id],
    )
    drop_indexes(connection, model)
