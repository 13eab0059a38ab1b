"""HNSW indexes: built after the load, in one go, with the memory that the graph needs."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import dict_row

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection, translate, vector_schema
from pgimgsearch.database.store import StoredModel, count_embeddings, get_model
from pgimgsearch.errors import ModelError

MOST_DIMENSIONS = {"halfvec": 4000, "vector": 2000, "bit": 64000}
OPERATOR_CLASSES = {"halfvec": "halfvec_cosine_ops", "vector": "vector_cosine_ops", "bit": "bit_hamming_ops"}
EFFORTS = [20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000]  # values of ef_search to try
MEGABYTE = 1 << 20
REMOTE_MEMORY = 2048
BUILDING, OLD = "_new", "_old"  # ends of an index's name while it is built, and when another has taken its place

Progress = Callable[[str, int, int], None]  # phase, done, total


def index_name(model: StoredModel) -> str:
    """The name of a model's index, without the schema."""
    return f"{model.table_name}_hnsw"


def graph_bytes(rows: int, model: StoredModel) -> int:
    """The memory in which the whole graph is built: vectors, neighbour lists and pgvector's bookkeeping."""
    vector = {"halfvec": 2 * model.dim, "vector": 4 * model.dim, "bit": model.dim // 8}[model.storage]
    return rows * (vector + int(model.index_wanted["m"]) * 2 * 16 + 256)


def memory_for(rows: int, model: StoredModel, limit: int) -> int:
    """Megabytes of maintenance_work_mem for a build: the graph and a fifth, at least 64 and at most ``limit``."""
    return max(64, min(limit, graph_bytes(rows, model) * 6 // 5 // MEGABYTE))


def memory_limit(*, remote: bool) -> int:
    """Megabytes that a build may take where nobody says: of a server elsewhere we cannot see the size."""
    return REMOTE_MEMORY if remote else machine_memory()


def machine_memory() -> int:
    """A quarter of this machine's memory, in megabytes: what a build on the embedded server may take."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 // MEGABYTE


def can_index(model: StoredModel) -> bool:
    """Whether pgvector can index so many dimensions."""
    return model.dim <= MOST_DIMENSIONS[model.storage]


def is_wanted(model: StoredModel) -> bool:
    """Whether a model shall have an index, and can."""
    return model.index_wanted["method"] != "none" and can_index(model)


def is_fulfilled(model: StoredModel) -> bool:
    """Whether a model's index is as it is wanted (see ``imgsearch.set_index``)."""
    wanted = model.index_wanted
    if not is_wanted(model):
        return model.index_method == "none"
    return model.index_method == wanted["method"] and all(
        model.index_parameters.get(key) == value for key, value in wanted.items() if key != "method"
    )


def fulfil(
    connection: Connection, model: StoredModel, *, memory_limit: int, concurrently: bool = False,
    parallel: bool = True, report: Progress | None = None,
) -> bool:  # fmt: skip
    """Make a model's index as it is wanted, if it is not. Returns whether that took anything; raises like ``build``.

    Without ``parallel`` the server works at it with one process: slower, and those who ask keep the other cores.
    """
    with _alone(connection, model):
        now = get_model(connection, model.name)  # another session may have been at it just before
        if is_fulfilled(now):
            _drop_leftovers(connection, now)
            return False
        if is_wanted(now):
            _build(connection, now, memory_limit, concurrently, report, parallel=parallel)
        else:
            drop(connection, now)
        return True


def build(
    connection: Connection, model: StoredModel, *, memory_limit: int, concurrently: bool = False,
    report: Progress | None = None,
) -> int:  # fmt: skip
    """Build a model's index anew, or drop it where none is wanted; ANALYZE included. Returns its megabytes of memory.

    ``memory_limit`` is in megabytes. The leftover of a killed build is dropped first, that of a failed one at once, and
    the error says so; ``concurrently`` keeps the old index in use until the new one is there. Where shared memory
    is too small for parallel workers, as in a container, it is built without them. Raises BusyError where another
    session builds it.
    """
    if not can_index(model):
        raise ModelError(
            f"pgvector cannot index {model.dim} dimensions of {model.storage}",
            hint="searches stay exact; choose a smaller model for a large collection",
        )
    with _alone(connection, model):
        if not is_wanted(model):
            drop(connection, model)
            return 0
        return _build(connection, model, memory_limit, concurrently, report)


def _alone(connection: Connection, model: StoredModel) -> AbstractContextManager[None]:
    return locks.alone(connection, "index", model.model_id, f"another session builds the index of {model.name}")


def _build(
    connection: Connection, model: StoredModel, memory_limit: int, concurrently: bool, report: Progress | None, *,
    parallel: bool = True,
) -> int:  # fmt: skip
    memory = memory_for(count_embeddings(connection, model), model, memory_limit)
    neighbours, candidates = model.index_wanted["m"], model.index_wanted["ef_construction"]
    statement = sql.SQL(
        "create index {} {} on {} using hnsw (embedding {}) with (m = {}, ef_construction = {})"
    ).format(
        sql.SQL("concurrently" if concurrently else ""),
        sql.Identifier(index_name(model) + BUILDING),
        model.table,
        sql.SQL(f"{vector_schema(connection)}.{OPERATOR_CLASSES[model.storage]}"),
        sql.Literal(neighbours),
        sql.Literal(candidates),
    )
    _drop_leftovers(connection, model)
    if not concurrently:
        drop(connection, model)
    with _settings(connection, memory), _reported(connection, report), _no_leftover(connection, model):
        if not parallel:
            connection.execute("set max_parallel_maintenance_workers = 0")
        try:
            connection.execute(statement)
        except (pg.DiskFull, pg.OutOfMemory) as error:
            if "shared memory" not in str(error):
                raise
            _drop_leftovers(connection, model)
            connection.execute("set max_parallel_maintenance_workers = 0")
            connection.execute(statement)
    _swap(connection, model, neighbours, candidates)
    connection.execute(sql.SQL("analyze {}").format(model.table))
    return memory


def _swap(connection: Connection, model: StoredModel, neighbours: int, candidates: int) -> None:
    """Let the new index be the model's, and drop the old one. Renaming waits for nobody who reads, nor they for it."""
    final, old = index_name(model), index_name(model) + OLD
    with connection.transaction():
        connection.execute(sql.SQL("alter index if exists {} rename to {}").format(_index(final), sql.Identifier(old)))
        connection.execute(
            sql.SQL("alter index {} rename to {}").format(_index(final + BUILDING), sql.Identifier(final))
        )
        connection.execute(
            "update imgsearch.model set index_method = 'hnsw', "
            "index_parameters = jsonb_build_object('m', %s::int, 'ef_construction', %s::int) where model_id = %s",
            [neighbours, candidates, model.model_id],
        )
    _drop_index(connection, old)


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
    """What killed builds have left: one that was not finished, or the one before it."""
    for end in (BUILDING, OLD):
        _drop_index(connection, index_name(model) + end)


def _drop_index(connection: Connection, name: str) -> None:
    """Concurrently: a plain drop waits for all who read the table, and all who come after wait for it."""
    connection.execute(sql.SQL("drop index concurrently if exists {}").format(_index(name)))


def _index(name: str) -> sql.Identifier:
    return sql.Identifier("imgsearch", name)


def drop(connection: Connection, model: StoredModel) -> None:
    """Drop a model's index, if there is one; searches are exact from then on."""
    connection.execute("update imgsearch.model set index_method = 'none' where model_id = %s", [model.model_id])
    _drop_index(connection, index_name(model))


def status(connection: Connection) -> list[dict[str, Any]]:
    """Each model's index: method, validity, rows, sizes in bytes."""
    return (
        connection.cursor(row_factory=dict_row)
        .execute(
            "select m.name as model, m.index_method as method, coalesce(x.indisvalid, false) as valid, "
            "greatest(t.reltuples, 0)::bigint as rows, pg_total_relation_size(m.embeddings) as table_bytes, "
            "coalesce(pg_relation_size(x.indexrelid), 0) as index_bytes, m.ef_search, "
            "m.index_wanted ->> 'method' as wanted "
            "from imgsearch.model m join pg_class t on t.oid = m.embeddings "
            "left join pg_class i on i.relnamespace = t.relnamespace and i.relname = t.relname || '_hnsw' "
            "left join pg_index x on x.indexrelid = i.oid order by m.name"
        )
        .fetchall()
    )


def tune(connection: Connection, model: StoredModel, wanted: float, k: int, sample: int) -> list[dict[str, Any]]:
    """Measure recall@k over ``sample`` stored vectors for rising ef_search; store the first that reaches ``wanted``.

    Returns a row for each: ef_search, recall, and the median milliseconds of a query. Raises ModelError where no
    ef_search reaches it, or there is no index.
    """
    rows = (
        connection.cursor(row_factory=dict_row)
        .execute(
            "select r.ef_search, avg(r.recall) as recall, "
            "percentile_cont(0.5) within group (order by r.milliseconds) as milliseconds "
            "from imgsearch.model m, imgsearch._recalls(m, %s, imgsearch._drawn(m, %s), %s) r "
            "where m.model_id = %s group by 1 order by 1",
            [k, sample, EFFORTS, model.model_id],
        )
        .fetchall()
    )
    if not rows:
        raise ModelError(f"{model.name} has no index", hint=f"run: pgimgsearch index build {model.name}")
    reaching = [row["ef_search"] for row in rows if row["recall"] >= wanted]
    if not reaching:
        best = max(row["recall"] for row in rows)
        raise ModelError(
            f"no ef_search reaches a recall of {wanted}: the most is {best:.4f}",
            hint=f"build it anew, as many changes make an index worse: pgimgsearch index build {model.name}",
        )
    connection.execute("update imgsearch.model set ef_search = %s where model_id = %s", [min(reaching), model.model_id])
    return rows


@contextmanager
def _settings(connection: Connection, memory: int) -> Iterator[None]:
    """Memory and workers for a build, put back afterwards."""
    connection.execute("select set_config('maintenance_work_mem', %s, false)", [f"{memory}MB"])
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("reset maintenance_work_mem")
            connection.execute("reset max_parallel_maintenance_workers")


@contextmanager
def _reported(connection: Connection, report: Progress | None) -> Iterator[None]:
    """Watch pg_stat_progress_create_index from a second connection while the block runs."""
    if report is None:
        yield
        return
    done = threading.Event()
    pid = connection.info.backend_pid

    def watch() -> None:
        with psycopg.connect(connection.info.dsn, password=connection.info.password, autocommit=True) as watcher:
            while not done.wait(0.5):
                row = watcher.execute(
                    "select phase, greatest(tuples_done, blocks_done), greatest(tuples_total, blocks_total) "
                    "from pg_stat_progress_create_index where pid = %s", [pid],
                ).fetchone()  # fmt: skip
                if row:
                    report(*row)

    thread = threading.Thread(target=watch, name="index-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
