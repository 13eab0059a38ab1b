"""The index swap: load a model's shadow table, build its index, and put it in place of the live table.

For large loads: a live graph takes a few hundred rows a second, a build takes thousands, and searches go on meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb
from tenacity import (
    Retrying,
    retry,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
)

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, count_embeddings, get_model
from pgimgsearch.database.privileges import owns_table
from pgimgsearch.database.retry import with_lock_retries
from pgimgsearch.errors import BusyError, ModelError, RecallError
from pgimgsearch.indexing.build import (
    BuildOptions,
    BuildResult,
    IndexPlan,
    lock_index,
    plan_index,
    wants_index,
    with_index_spec,
)
from pgimgsearch.indexing.ddl import IN_USE, create_index, drop_leftovers, index_build
from pgimgsearch.indexing.embedding_table import EmbeddingTable, count_rows, live_table, shadow_table
from pgimgsearch.indexing.methods import index_spec
from pgimgsearch.indexing.recall import reach_recall
from pgimgsearch.reporter import SILENT, Reporter

MIN_ROWS, SHARE = 20_000, 4  # new rows from which a swap pays off, and how many times that the live table may hold
ROWS_PER_COPY = 20_000
SMALL = 20  # a live table with so many times the rows of the shadow takes them faster than a new index is built
FEW = 100  # rows that are caught up with while writers wait
MAX_WAIT = 86_400.0  # seconds to wait for readers of the live table, such as pg_dump
SECONDS_TO_LEAVE = 10.0  # until the server has cleared away a session that wrote to the shadow
SECONDS_TO_READ = 30.0  # for queries about to read the retired table; after that it stays until the next load

NEXT = "select max(c.content_id) from (select content_id from {} where content_id > %s order by content_id limit %s) c"
COPY = "insert into {} select e.* from {} e where e.content_id > %s and e.content_id <= %s on conflict do nothing"
CATCH_UP = "select imgsearch._catch_up(m) from imgsearch.model m where m.model_id = %s"
UPDATE_MODEL = """
update imgsearch.model set index_method = {method}, index_state = {state}, index_spec = index_spec || {spec},
    ef_search = {ef_search} where model_id = {model}
"""

# Transactions of others in this database that may have read something. Each holds the lock of its own number; one
# without a snapshot will see the swap. Of other roles' sessions neither that nor their state is visible to this role.
# Autovacuum, which may take hours, has no user.
OTHER_TRANSACTIONS = """
select coalesce(array_agg(l.virtualxid), '{}')
from pg_locks l join pg_stat_activity a using (pid)
where l.locktype = 'virtualxid' and l.granted and l.virtualxid = l.virtualtransaction and a.usesysid is not null
    and a.datname = current_database() and l.pid <> pg_backend_pid() and (a.backend_xmin is not null or a.state is null)
"""


def pays_off(connection: Connection, model: StoredModel, new_rows: int) -> bool:
    """Whether so many new rows are too many for a live index, and this role can swap tables."""
    if new_rows < MIN_ROWS or model.index_method == "none" or not owns_table(connection, model):
        return False
    return not user_objects(connection, model) and new_rows * SHARE >= count_embeddings(connection, model)


def user_objects(connection: Connection, model: StoredModel) -> list[str]:
    """Objects that users put on a model's table, and that a swap would lose."""
    query = "select p from imgsearch.model m, imgsearch._user_objects(m) p where m.model_id = %s order by 1"
    return [row[0] for row in connection.execute(query, [model.model_id]).fetchall()]


def check_swap(connection: Connection, model: StoredModel) -> None:
    """Raise ModelError where this role cannot swap a model's table, or a swap would lose something."""
    if not owns_table(connection, model):
        raise ModelError(
            f"only the owner of the table of {model.name} can replace it", hint="run it with --no-shadow-table"
        )
    if found := user_objects(connection, model):
        raise ModelError(
            f"replacing the table of {model.name} would lose these objects: {', '.join(found)}",
            hint="drop them first, and create them again afterwards",
        )


def create_shadow(connection: Connection, model: StoredModel, partitions: int | None = None) -> None:
    """Create a model's shadow table, unless it exists; with so many partitions, or those of the live table.

    Raises BusyError where one with other partitions exists, and like ``check_swap``.
    """
    shadow = shadow_table(connection, model)
    if shadow is not None and partitions not in {None, shadow.partitions}:
        raise BusyError(
            f"{model.name} already has a shadow table, with {shadow.partitions} partitions",
            hint=f"swap it in first, unless an ingest is running: pgimgsearch index build {model.name}",
        )
    if shadow is not None:
        return
    check_swap(connection, model)
    connection.execute("select imgsearch._make_shadow(%s, %s)", [model.model_id, partitions or model.partitions])


def complete_load(
    connection: Connection, model: StoredModel, options: BuildOptions, reporter: Reporter = SILENT,
    method: str | None = None,
) -> BuildResult | None:  # fmt: skip
    """Copy the live rows to a model's shadow table, build the wanted index there, and swap it in.

    Others read and write the live table meanwhile. An interruption loses nothing: the next call continues. Returns what
    was built, if an index is wanted. A quantized index that finds too little gives way to the present method, unless
    ``method`` asks for it. Raises BusyError where others still write to the shadow, and like ``create_shadow`` and
    ``build_index``.
    """
    with _exclusive(connection, model):
        model = get_model(connection, model.name)
        shadow, live = shadow_table(connection, model), live_table(model)
        if shadow is None:
            return None
        check_swap(connection, model)
        for table in (live, shadow):
            drop_leftovers(connection, model, table)
        if not drop_retired(connection, model):
            raise BusyError(
                f"others still read the table of {model.name} from before the last swap",
                hint=f"nothing is lost; when they are done: pgimgsearch index build {model.name}",
            )
        _copy(connection, live, shadow)
        connection.execute(sql.SQL("vacuum analyze {}").format(shadow.identifier))
        found = _build_index(connection, with_index_spec(model, method), shadow, options, reporter, fallback=not method)
        while _repeated(connection, CATCH_UP, [model.model_id]) > FEW:
            pass
        _swap(connection, model, found, method)
        if _readers_are_gone(connection):  # else it stays, until the next load
            drop_retired(connection, model)
        return found and found[1]


def is_small(connection: Connection, model: StoredModel, shadow: EmbeddingTable) -> bool:
    """Whether the live index takes the rows of a shadow table faster than a new index is built."""
    if shadow.partitions != model.partitions or model.index_method == "none":
        return False
    return count_rows(connection, shadow) * SMALL < count_embeddings(connection, model)


def merge_into_live(connection: Connection, model: StoredModel, shadow: EmbeddingTable) -> None:
    """Insert the rows of a shadow table into the live one; raises BusyError where others still write to it."""
    with _exclusive(connection, model):
        insert = "insert into {} select * from {} order by content_id on conflict do nothing"
        _repeated(connection, sql.SQL(insert).format(model.table, shadow.identifier), [])
        with_lock_retries(connection, sql.SQL("drop table if exists {}").format(shadow.identifier))


def drop_retired(connection: Connection, model: StoredModel, seconds: float = 30) -> bool:
    """Drop the table that a swap replaced, if there is one; False where others still hold it."""
    row = connection.execute(
        "select imgsearch._embedding_table(m, 'retired') from imgsearch.model m where m.model_id = %s", [model.model_id]
    ).fetchone()
    assert row is not None
    retired = sql.Identifier("imgsearch", row[0])
    try:
        with_lock_retries(connection, sql.SQL("drop table if exists {}").format(retired), seconds=seconds)
    except pg.LockNotAvailable:
        return False
    return True


@contextmanager
def _exclusive(connection: Connection, model: StoredModel) -> Iterator[None]:
    busy = f"another session still writes to the shadow table of {model.name}"
    with (
        lock_index(connection, model),
        locks.exclusive(connection, locks.SHADOW, model.model_id, busy, seconds=SECONDS_TO_LEAVE),
    ):
        yield


def _build_index(
    connection: Connection, model: StoredModel, shadow: EmbeddingTable, options: BuildOptions,
    reporter: Reporter, *, fallback: bool,
) -> tuple[IndexPlan, BuildResult] | None:  # fmt: skip
    """Build and measure the wanted index of a shadow table, or with ``fallback`` one of the present method."""
    if not wants_index(model) or index_spec(model).is_too_few(count_rows(connection, shadow)):
        return None
    plan = plan_index(connection, model, shadow, options)
    try:
        with index_build(connection, model, shadow, plan.memory, options.workers, reporter):
            # concurrently, as contents may be removed meanwhile, and their rows with them
            create_index(connection, model, shadow, plan.method, plan.state, stage=IN_USE, concurrently=True)
            found = reach_recall(connection, model, shadow, plan.method, plan.state)
    except RecallError:
        if not fallback:
            raise
        present = with_index_spec(model, model.index_method)
        return _build_index(connection, present, shadow, options, reporter, fallback=False)
    plan.state["recall"] = found.recall
    return plan, BuildResult(plan.method, plan.memory, found.ef_search, found.recall)


def _copy(connection: Connection, live: EmbeddingTable, shadow: EmbeddingTable) -> None:
    """Copy the live rows in parts, each of which is kept."""
    last = -1
    while True:
        row = connection.execute(sql.SQL(NEXT).format(live.identifier), [last, ROWS_PER_COPY]).fetchone()
        if row is None or row[0] is None:
            return
        _repeated(connection, sql.SQL(COPY).format(shadow.identifier, live.identifier), [last, row[0]])
        last = row[0]


@retry(
    retry=retry_if_exception_type((pg.ForeignKeyViolation, pg.DeadlockDetected)), stop=stop_after_attempt(5),
    reraise=True,
)  # fmt: skip
def _repeated(connection: Connection, statement: sql.Composed | str, values: list[int]) -> int:
    """Run a statement again where others removed contents at that moment. Returns the number that a catch-up gives."""
    cursor = connection.execute(statement, values)
    row = cursor.fetchone() if cursor.description else None
    return int(row[0]) if row else 0


def _swap(
    connection: Connection, model: StoredModel, found: tuple[IndexPlan, BuildResult] | None, method: str | None
) -> None:
    """Swap the tables and update the model's row; searches use the old table until this is committed."""
    state, ef_search = {}, model.ef_search
    if found is not None:
        state, ef_search = found[0].state, found[1].ef_search
    elif model.index_method == "none":  # perhaps with bits that were refused just now
        state = get_model(connection, model.name).index_state
    else:
        state = {"method": model.index_method}
    with_lock_retries(
        connection,
        sql.SQL("select imgsearch._swap_embeddings({})").format(sql.Literal(model.model_id)),
        sql.SQL(UPDATE_MODEL).format(
            method=sql.Literal(found[0].method if found else "none"),
            state=sql.Literal(Jsonb(state)),
            spec=sql.Literal(Jsonb({} if method is None else {"method": method})),
            ef_search=sql.Literal(ef_search),
            model=sql.Literal(model.model_id),
        ),
        seconds=MAX_WAIT,
    )


def _readers_are_gone(connection: Connection) -> bool:
    """Wait for queries that may have read the model's row before the swap; False where one runs for too long.

    Such a query asks for the retired table by name a moment later, and holds no lock on it until then.
    """
    before = _other_transactions(connection)
    attempts = Retrying(
        retry=retry_if_result(bool), stop=stop_after_delay(SECONDS_TO_READ), wait=wait_fixed(0.1),
        retry_error_callback=lambda _: True,
    )  # fmt: skip
    return not attempts(lambda: before & _other_transactions(connection))


def _other_transactions(connection: Connection) -> set[str]:
    row = connection.execute(OTHER_TRANSACTIONS).fetchone()
    assert row is not None
    return set(row[0])
