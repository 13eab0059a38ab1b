"""A table beside a model's live one, filled and indexed there, and then put in its place.

For much at once: a live graph takes a few hundred rows a second, a build beside it thousands, and searches go on.
"""

from dataclasses import replace
from typing import LiteralString

from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from pgimgsearch.database import index, locks, recall
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.index import Build, Built
from pgimgsearch.database.index_create import create, drop_leftovers, making, patiently
from pgimgsearch.database.index_names import partitions
from pgimgsearch.database.index_progress import Progress
from pgimgsearch.database.sizing import is_too_few
from pgimgsearch.database.store import StoredModel, count_embeddings, get_model, owns
from pgimgsearch.errors import ModelError

LEAST, SHARE = 20_000, 4  # new rows from which on it is worth it, and how many times that may be there
ROWS_AT_ONCE = 20_000
PATIENCE = 600.0  # seconds in which nobody has to read the table for a moment

NEXT = "select max(c.content_id) from (select content_id from {} where content_id > %s order by content_id limit %s) c"
COPY = "insert into {} select e.* from {} e where e.content_id > %s and e.content_id <= %s on conflict do nothing"

CATCH_UP = "select imgsearch._catch_up(m) from imgsearch.model m where m.model_id = %s"


class Aside(StoredModel):
    """A model as it will be, whose table is the one beside its own."""

    __slots__ = ()

    @property
    def table_name(self) -> str:
        """The name of its table, without the schema."""
        return f"embeddings_{self.model_id}_aside"


def find(connection: Connection, model: StoredModel) -> Aside | None:
    """What is beside a model's table, if there is something."""
    beside = Aside(*(getattr(model, name) for name in StoredModel.__slots__))
    row = connection.execute("select to_regclass(%s) is not null", [f"imgsearch.{beside.table_name}"]).fetchone()
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

    Raises ModelError where something of somebody's own would be lost with the table before.
    """
    if find(connection, model) is not None:
        return
    if own := own_parts(connection, model):
        raise ModelError(
            f"a new table of {model.name} would not have what was put on the old one: {', '.join(own)}",
            hint="drop that first, and make it again afterwards",
        )
    connection.execute("select imgsearch._make_aside(%s, %s)", [model.model_id, parts or model.partitions])


def finish(
    connection: Connection, model: StoredModel, wish: Build, report: Progress | None = None, method: str | None = None
) -> Built | None:
    """Copy what the live table has to the one beside it, build the wanted index there, and put it in its place.

    Others read and write the live table meanwhile. Whatever stops this loses nothing: the next call goes on. Returns
    what was built, if an index is wanted. Raises BusyError where others still write beside the table, and like
    ``index.build``.
    """
    busy = f"another session still writes beside the table of {model.name}"
    with index.alone(connection, model), locks.alone(connection, locks.ASIDE, model.model_id, busy):
        model = get_model(connection, model.name)
        if method is not None:
            model = index.wishing(model, method)
        beside = find(connection, model)
        if beside is None:
            return None
        _copy(connection, model, beside)
        beside = replace(beside, index_wanted=model.index_wanted)
        drop_leftovers(connection, beside)
        built, noted = None, {}
        if index.is_wanted(beside) and not is_too_few(beside, count_embeddings(connection, beside)):
            draft = index.drafted(connection, beside, wish)
            noted = draft.noted
            with making(connection, beside, draft.memory, wish.workers, report):
                create(connection, beside, draft.method, noted)
                found = recall.reached(connection, beside, draft.method, noted)
            built = Built(draft.method, draft.memory, found.ef_search, found.recall)
        _again(connection, CATCH_UP, [model.model_id])
        _swap(connection, model, built, noted)
        return built


def _copy(connection: Connection, model: StoredModel, beside: Aside) -> None:
    """In parts, each of which is kept."""
    last = -1
    while True:
        row = connection.execute(sql.SQL(NEXT).format(model.table), [last, ROWS_AT_ONCE]).fetchone()
        if row is None or row[0] is None:
            return
        _again(connection, sql.SQL(COPY).format(beside.table, model.table), [last, row[0]])
        last = row[0]


@retry(retry=retry_if_exception_type(pg.ForeignKeyViolation), stop=stop_after_attempt(5), reraise=True)
def _again(connection: Connection, statement: sql.Composed | LiteralString, values: list[int]) -> None:
    """What is removed by others at that very moment has to be left out."""
    connection.execute(statement, values)


def _swap(connection: Connection, model: StoredModel, built: Built | None, noted: dict[str, object]) -> None:
    """Searches go on with the table before until this is committed; those that come after see the new one."""
    former = sql.Identifier("imgsearch", f"embeddings_{model.model_id}_old")
    drop = sql.SQL("drop table if exists {}").format(former)
    patiently(connection, drop)  # of a swap that was killed
    patiently(
        connection,
        sql.SQL("select imgsearch._swap_embeddings({})").format(sql.Literal(model.model_id)),
        sql.SQL(
            "update imgsearch.model set index_method = {}, index_parameters = {}, index_wanted = {}, ef_search = {} "
            "where model_id = {}"
        ).format(
            sql.Literal(built.method if built else "none"),
            sql.Literal(Jsonb(noted | {"recall": built.recall} if built else {})),
            sql.Literal(Jsonb(model.index_wanted)),
            sql.Literal(built.ef_search if built else model.ef_search),
            sql.Literal(model.model_id),
        ),
        seconds=PATIENCE,
    )
    connection.execute(sql.SQL("analyze {}").format(model.table))
    patiently(connection, drop)
