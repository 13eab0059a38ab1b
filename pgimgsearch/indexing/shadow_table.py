"""A table beside a model's live one, filled and indexed there, and then put in its place.

For much at once: a live graph takes a few hundred rows a second, a build beside it thousands, and searches go on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, LiteralString

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
from pgimgsearch.database.models import StoredModel, count_embeddings, get_model, owns
from pgimgsearch.errors import BusyError, ModelError, RecallError
from pgimgsearch.indexing import build as index
from pgimgsearch.indexing import recall
from pgimgsearch.indexing.build import Build, Built
from pgimgsearch.indexing.ddl import create, drop_leftovers, making, patiently
from pgimgsearch.indexing.index_names import named, partitions
from pgimgsearch.indexing.methods import is_too_few
from pgimgsearch.indexing.progress import Progress

LEAST, SHARE = 20_000, 4  # new rows from which on it is worth it, and how many times that may be there
ROWS_AT_ONCE = 20_000
LITTLE = 20  # times as many rows in the live table: less than that is put into its index
FEW = 100  # rows that are caught up with while writers wait
PATIENCE = 86_400.0  # seconds to wait for a moment in which nobody reads the table, as somebody may dump it
SECONDS_TO_LEAVE = 10.0  # until the server has cleared away a session that wrote beside
SECONDS_TO_READ = 30.0  # for those who are about to read the former table; longer, and it stays until the next time

NEXT = "select max(c.content_id) from (select content_id from {} where content_id > %s order by content_id limit %s) c"
COPY = "insert into {} select e.* from {} e where e.content_id > %s and e.content_id <= %s on conflict do nothing"

# Each transaction holds the lock of its own number; one without a snapshot will see the swap. Of other roles' sessions
# this role may see neither that nor the state. Autovacuum's, which may take hours, has no user.
UNDER_WAY = (
    "select coalesce(array_agg(l.virtualxid), '{}') from pg_locks l join pg_stat_activity a using (pid) "
    "where l.locktype = 'virtualxid' and l.granted and l.virtualxid = l.virtualtransaction and a.usesysid is not null "
    "and a.datname = current_database() and l.pid <> pg_backend_pid() "
    "and (a.backend_xmin is not null or a.state is null)"
)

CATCH_UP = "select imgsearch._catch_up(m) from imgsearch.model m where m.model_id = %s"


class Aside(StoredModel):
    """A model as it will be, whose table is the one beside its own."""

    __slots__ = ()

    @property
    def table_name(self) -> str:
        """The name of its table, without the schema."""
        return f"embeddings_{self.model_id}_aside"


def find(connection: Connection, model: StoredModel) -> Aside | None:
    """What is beside a model's table, if there is something, and this role may see it."""
    beside = Aside(*(getattr(model, name) for name in StoredModel.__slots__))
    query = "select has_table_privilege(to_regclass(%s), 'select')"
    row = connection.execute(query, [f"imgsearch.{beside.table_name}"]).fetchone()
    return replace(beside, partitions=len(partitions(connection, beside))) if row == (True,) else None


def is_worth(connection: Connection, model: StoredModel, coming: int) -> bool:
    """Whether so many new rows are too many for a live index, and this role can put another table in its place."""
    if coming < LEAST or model.index_method == "none" or not owns(connection, model):
        return False
    return not own_parts(connection, model) and coming * SHARE >= count_embeddings(connection, model)


def own_parts(connection: Connection, model: StoredModel) -> list[str]:
    """What somebody has put on a model's table that would be lost with it."""
    query = "select p from imgsearch.model m, imgsearch._own_parts(m) p where m.model_id = %s order by 1"
    return [row[0] for row in connection.execute(query, [model.model_id]).fetchall()]


def begin(connection: Connection, model: StoredModel, parts: int | None = None) -> None:
    """Make the table beside a model's, unless it is there; in so many partitions, or as many as there are.

    Raises BusyError where one of other partitions is there, and like ``check``.
    """
    there = find(connection, model)
    if there is not None and parts not in {None, there.partitions}:
        raise BusyError(
            f"vectors lie beside the table of {model.name} already, in {there.partitions} partitions",
            hint=f"take them into use first, unless an ingest is at it: pgimgsearch index build {model.name}",
        )
    if there is not None:
        return
    check(connection, model)
    connection.execute("select imgsearch._make_aside(%s, %s)", [model.model_id, parts or model.partitions])


def finish(
    connection: Connection, model: StoredModel, wish: Build, report: Progress | None = None, method: str | None = None
) -> Built | None:
    """Copy what the live table has to the one beside it, build the wanted index there, and put it in its place.

    Others read and write the live table meanwhile. Whatever stops this loses nothing: the next call goes on. Returns
    what was built, if an index is wanted. Bits that find too little give way to the method there is, unless ``method``
    asks for them. Raises BusyError where others still write beside the table, and like ``begin`` and ``index.build``.
    """
    with _alone(connection, model):
        model = get_model(connection, model.name)
        beside = find(connection, model)
        if beside is None:
            return None
        check(connection, model)
        for one in (model, beside):
            drop_leftovers(connection, one)
        if not drop_former(connection, model):
            raise BusyError(
                f"others still read the table of {model.name} from before the last swap",
                hint=f"nothing is lost; when they are done: pgimgsearch index build {model.name}",
            )
        _copy(connection, model, beside)
        connection.execute(sql.SQL("vacuum analyze {}").format(beside.table))
        wishing = index.wishing(beside, method) if method is not None else beside
        try:
            built, noted = _indexed(connection, wishing, wish, report)
        except RecallError:
            if method is not None:
                raise
            now = wishing.index_wanted | {"method": model.index_method}
            built, noted = _indexed(connection, replace(wishing, index_wanted=now), wish, report)
        while _again(connection, CATCH_UP, [model.model_id]) > FEW:
            pass
        _swap(connection, model, built, noted, method)
        if _readers_are_gone(connection):  # else it stays, until the next ingest
            drop_former(connection, model)
        return built


def is_little(connection: Connection, model: StoredModel, beside: Aside) -> bool:
    """Whether so little lies beside a table that its index takes it faster than a new one is built."""
    if beside.partitions != model.partitions or model.index_method == "none":
        return False
    return count_embeddings(connection, beside) * LITTLE < count_embeddings(connection, model)


def give_back(connection: Connection, model: StoredModel, beside: Aside) -> None:
    """Put what lies beside a table into it; raises BusyError where others still write there."""
    with _alone(connection, model):
        insert = "insert into {} select * from {} order by content_id on conflict do nothing"
        _again(connection, sql.SQL(insert).format(model.table, beside.table), [])
        patiently(connection, sql.SQL("drop table if exists {}").format(beside.table))


@contextmanager
def _alone(connection: Connection, model: StoredModel) -> Iterator[None]:
    busy = f"another session still writes beside the table of {model.name}"
    with (
        index.alone(connection, model),
        locks.alone(connection, locks.ASIDE, model.model_id, busy, seconds=SECONDS_TO_LEAVE),
    ):
        yield


def check(connection: Connection, model: StoredModel) -> None:
    """Raise ModelError where this role cannot put another table in place, or something would be lost by it."""
    if not owns(connection, model):
        raise ModelError(
            f"only the owner of the table of {model.name} can put another in its place", hint="run it with --no-aside"
        )
    if own := own_parts(connection, model):
        raise ModelError(
            f"a new table of {model.name} would not have what was put on the old one: {', '.join(own)}",
            hint="drop that first, and make it again afterwards",
        )


def _indexed(
    connection: Connection, beside: StoredModel, wish: Build, report: Progress | None
) -> tuple[Built | None, dict[str, Any]]:
    """Build the wanted index beside, and measure it. Contents may be removed meanwhile, whose rows go with them."""
    if not index.is_wanted(beside) or is_too_few(beside, count_embeddings(connection, beside)):
        return None, {}
    draft = index.drafted(connection, beside, wish)
    with making(connection, beside, draft.memory, wish.workers, report):
        create(connection, beside, draft.method, draft.noted, concurrently=True)
        found = recall.reached(connection, beside, draft.method, draft.noted)
    built = Built(draft.method, draft.memory, found.ef_search, found.recall)
    return built, draft.noted | {"recall": found.recall}


def _copy(connection: Connection, model: StoredModel, beside: Aside) -> None:
    """In parts, each of which is kept."""
    last = -1
    while True:
        row = connection.execute(sql.SQL(NEXT).format(model.table), [last, ROWS_AT_ONCE]).fetchone()
        if row is None or row[0] is None:
            return
        _again(connection, sql.SQL(COPY).format(beside.table, model.table), [last, row[0]])
        last = row[0]


@retry(
    retry=retry_if_exception_type((pg.ForeignKeyViolation, pg.DeadlockDetected)), stop=stop_after_attempt(5),
    reraise=True,
)  # fmt: skip
def _again(connection: Connection, statement: sql.Composed | LiteralString, values: list[int]) -> int:
    """What others remove at that very moment has to be left out. Returns the number of a catch-up."""
    cursor = connection.execute(statement, values)
    row = cursor.fetchone() if cursor.description else None
    return int(row[0]) if row else 0


def _swap(
    connection: Connection, model: StoredModel, built: Built | None, noted: dict[str, Any], method: str | None
) -> None:
    """Searches go on with the table before until this is committed; those that come after see the new one."""
    if built is None:
        now = get_model(connection, model.name).index_parameters  # with bits that were refused just now
        noted = now if model.index_method == "none" else {"method": model.index_method}
    patiently(
        connection,
        sql.SQL("select imgsearch._swap_embeddings({})").format(sql.Literal(model.model_id)),
        sql.SQL(
            "update imgsearch.model set index_method = {}, index_parameters = {}, index_wanted = index_wanted || {}, "
            "ef_search = {} where model_id = {}"
        ).format(
            sql.Literal(built.method if built else "none"),
            sql.Literal(Jsonb(noted)),
            sql.Literal(Jsonb({} if method is None else {"method": method})),
            sql.Literal(built.ef_search if built else model.ef_search),
            sql.Literal(model.model_id),
        ),
        seconds=PATIENCE,
    )


def drop_former(connection: Connection, model: StoredModel, seconds: float = 30) -> bool:
    """Drop the table that another has taken the place of, if there is one; False where others hold on to it."""
    former = named(f"embeddings_{model.model_id}_old")
    try:
        patiently(connection, sql.SQL("drop table if exists {}").format(former), seconds=seconds)
    except pg.LockNotAvailable:
        return False
    return True


def _readers_are_gone(connection: Connection) -> bool:
    """Wait for all who may have read the model's row before the swap; False where one of them goes on for too long.

    A search that has read it asks for the former table by name a moment later, and holds no lock on it until then.
    """
    before = _under_way(connection)
    tries = Retrying(
        retry=retry_if_result(bool), stop=stop_after_delay(SECONDS_TO_READ), wait=wait_fixed(0.1),
        retry_error_callback=lambda _: True,
    )  # fmt: skip
    return not tries(lambda: before & _under_way(connection))


def _under_way(connection: Connection) -> set[str]:
    """The transactions of others in this database that may have read something."""
    row = connection.execute(UNDER_WAY).fetchone()
    assert row is not None
    return set(row[0])
