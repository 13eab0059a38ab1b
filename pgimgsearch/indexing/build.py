"""Build a model's index: in one go after the load, with the memory it needs, and measured before searches use it."""

from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any

from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, get_model
from pgimgsearch.errors import ModelError, RecallError
from pgimgsearch.indexing.ddl import (
    BUILDING,
    IN_USE,
    REPLACED,
    create_index,
    drop_indexes,
    drop_leftovers,
    index_build,
)
from pgimgsearch.indexing.embedding_table import EmbeddingTable, count_rows, live_table
from pgimgsearch.indexing.methods import MIN_ROWS, build_memory, index_spec
from pgimgsearch.indexing.recall import DEFAULT_RECALL, initial_ef_search, reach_recall
from pgimgsearch.reporter import SILENT, Reporter


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build: megabytes of memory at most, server processes (None: the server's setting), the recall to reach.

    ``concurrently`` lets others write meanwhile, and keeps the old index in use until the new one is ready.
    """

    memory_limit: int
    concurrently: bool = False
    workers: int | None = None
    recall: float = DEFAULT_RECALL


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was built, with how many megabytes of memory, and its measured recall; None with too few vectors."""

    method: str
    memory: int
    ef_search: int
    recall: float | None


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """An index before it is built: method, megabytes of memory, and what the model's row will hold of it."""

    method: str
    memory: int
    state: dict[str, Any]


def wants_index(model: StoredModel) -> bool:
    """Whether a model should have an index, and can."""
    return index_spec(model).method != "none"


def has_wanted_index(model: StoredModel) -> bool:
    """Whether a model's index is what its spec says (see ``imgsearch.set_index``)."""
    spec = index_spec(model)
    if model.index_method != spec.method or spec.method == "none":
        return model.index_method == spec.method
    return _parameters(model).items() <= model.index_state.items()


def is_index_due(connection: Connection, model: StoredModel) -> bool:
    """Whether a model without an index should get one now; after refused bits, once its rows have doubled."""
    if model.index_method != "none" or not wants_index(model):
        return False
    refused, spec = int(model.index_state.get("refused", 0)), index_spec(model)
    if not refused and not spec.needs_rows:  # a graph takes any number, and counting reads the whole table
        return True
    rows = count_rows(connection, live_table(model))
    return not spec.is_too_few(rows) and rows >= 2 * refused


def apply_index_spec(
    connection: Connection, model: StoredModel, options: BuildOptions, reporter: Reporter = SILENT
) -> bool:
    """Make a model's index what its spec says. Returns whether anything had to be done; raises like ``build_index``.

    With too few rows for that index, the present one stays.
    """
    with lock_index(connection, model):
        model = get_model(connection, model.name)  # another session may have just changed it
        table = live_table(model)
        if has_wanted_index(model) or index_spec(model).is_too_few(count_rows(connection, table)):
            drop_leftovers(connection, model, table)
            return False
        if wants_index(model):
            _build(connection, model, table, options, reporter)
        else:
            drop_index(connection, model)
        return True


def build_index(
    connection: Connection, model: StoredModel, options: BuildOptions, reporter: Reporter = SILENT,
    method: str | None = None,
) -> BuildResult | None:  # fmt: skip
    """Rebuild a model's index, by its spec or another ``method``, and ANALYZE; drop it where the spec has none.

    Leftovers of a killed build are dropped first, those of a failed one at once. Where shared memory is too small for
    parallel workers, it is built without them. A quantized index replaces another only once it was measured. Raises
    BusyError where another session builds it, RecallError where a quantized index finds too little or has too few
    rows, ModelError where nothing can index so many dimensions.
    """
    with lock_index(connection, model):
        model = with_index_spec(get_model(connection, model.name), method)  # another session may have just changed it
        if not wants_index(model):
            drop_index(connection, model)
            return None
        return _build(connection, model, live_table(model), options, reporter)


def with_previous_recall(model: StoredModel, memory_limit: int) -> BuildOptions:
    """Options for a build that must reach the recall that was wanted of the index before."""
    return BuildOptions(memory_limit, recall=model.index_state.get("wanted", DEFAULT_RECALL))


def with_index_spec(model: StoredModel, method: str | None) -> StoredModel:
    """The model with another method in its spec; raises ModelError where it cannot have that."""
    if method is not None:
        model = replace(model, index_spec=model.index_spec | {"method": method})
    if not wants_index(model) and model.index_spec["method"] != "none":
        raise ModelError(
            f"pgvector cannot index {model.dim} dimensions of {model.storage}",
            hint="searches stay exact; choose a smaller model for a large collection",
        )
    if index_spec(model).method == "hnsw-binary" and model.storage == "bit":
        raise ModelError(f"{model.name} stores bits already", hint="choose --method hnsw")
    return model


def lock_index(connection: Connection, model: StoredModel) -> AbstractContextManager[None]:
    """Hold a model's index and table for a block; raises BusyError where another session does."""
    busy = f"another session is building the index of {model.name}"
    return locks.exclusive(connection, locks.INDEX, model.model_id, busy)


def plan_index(connection: Connection, model: StoredModel, table: EmbeddingTable, options: BuildOptions) -> IndexPlan:
    """Plan the index of a table by the model's spec; raises RecallError where its rows are too few."""
    spec, rows = index_spec(model), count_rows(connection, table)
    if spec.is_too_few(rows):
        raise RecallError(
            f"{rows} vectors are too few for an index of method {spec.method}",
            hint=f"searches read all of them; build it again from {MIN_ROWS} vectors on, or: pgimgsearch index build "
            f"{model.name} --method hnsw",
        )
    memory = build_memory(rows // table.partitions, spec, spec.method, options.memory_limit)
    return IndexPlan(spec.method, memory, _parameters(model) | {"rows": rows, "wanted": options.recall})


def drop_index(connection: Connection, model: StoredModel) -> None:
    """Drop a model's index, if there is one; searches are exact from then on."""
    connection.execute(
        "update imgsearch.model set index_method = 'none', "
        "index_state = jsonb_build_object('method', index_method) where model_id = %s and index_method <> 'none'",
        [model.model_id],
    )
    drop_indexes(connection, live_table(model), IN_USE)


def _parameters(model: StoredModel) -> dict[str, int]:
    spec = index_spec(model)
    return {"m": spec.m, "ef_construction": spec.ef_construction}


def _build(
    connection: Connection, model: StoredModel, table: EmbeddingTable, options: BuildOptions,
    reporter: Reporter,
) -> BuildResult:  # fmt: skip
    plan = plan_index(connection, model, table, options)
    method, state, found = plan.method, plan.state, None
    drop_leftovers(connection, model, table)
    if not options.concurrently and model.index_method == method:
        drop_index(connection, model)
    with index_build(connection, model, table, plan.memory, options.workers, reporter):
        create_index(connection, model, table, method, state, stage=BUILDING, concurrently=options.concurrently)
        if method == "hnsw-binary" and model.index_method != method:
            found = reach_recall(connection, model, table, method, state)
    ef_search = found.ef_search if found else initial_ef_search(model, method)
    _use_new_index(connection, model, method, state, ef_search)
    found = found or reach_recall(connection, model, table, method, state)
    connection.execute(
        "update imgsearch.model set ef_search = %s, index_state = index_state || %s where model_id = %s",
        [found.ef_search, Jsonb({"recall": found.recall}), model.model_id],
    )
    connection.execute(sql.SQL("analyze {}").format(table.identifier))
    return BuildResult(method, plan.memory, found.ef_search, found.recall)


def _use_new_index(
    connection: Connection, model: StoredModel, method: str, state: dict[str, Any], ef_search: int
) -> None:
    """Let searches use the new index, and drop the old one. Renaming waits for no reader, and no reader for it."""
    connection.execute(
        "select imgsearch._use_new_index(%s, %s, %s, %s, %s)",
        [model.model_id, method, Jsonb(state), Jsonb({"method": model.index_spec["method"]}), ef_search],
    )
    with suppress(pg.LockNotAvailable):  # the new one is in use; doctor and the next build see to what is left
        drop_indexes(connection, live_table(model), REPLACED)
