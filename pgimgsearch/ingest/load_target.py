"""Where a run writes: into the live tables, or beside them, where so much comes that their indexes would hold it up."""

import os
from collections.abc import Callable, Collection, Sequence

from psycopg import sql

from pgimgsearch.database import locks
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.errors import BusyError
from pgimgsearch.indexing import shadow_table as aside
from pgimgsearch.sources.source import Source


def prefix(source: Source, root: str) -> str:
    """What the paths of a source's scope begin with, in a collection of this root."""
    if source.scope is None or source.scope == root:
        return ""
    return os.path.relpath(source.scope, root).rstrip("/") + "/"


def coming(
    connection: Connection, source: Source, files: int | None, collection: str | None, model: StoredModel
) -> int:
    """How many of a source's files a model has no vector of, as far as counts tell; 0 where nobody has counted them."""
    if files is None:
        return 0
    collection_id, _, root = store.open_collection(connection, collection, source.root, source.default_collection)
    known = connection.execute(
        sql.SQL(
            "select count(*) from imgsearch.image i join {} e using (content_id) "
            "where i.collection_id = %s and starts_with(i.path, %s)"
        ).format(model.table),
        [collection_id, prefix(source, root)],
    ).fetchone()
    assert known is not None
    return max(0, files - int(known[0]))


def is_chosen(connection: Connection, model: StoredModel, new: Callable[[], int], wished: bool | None) -> bool:
    """Whether to write beside a model's table: as wished, or where ``new`` says that so much comes as is worth it.

    What was begun and left goes on. A model without an index has nothing to wait for, and gets its rows at once.
    Raises ModelError where what is wished cannot be.
    """
    if wished is False or model.index_method == "none":
        return False
    if wished:
        aside.check(connection, model)
        return True
    if any(locks.taken(connection, what, model.model_id) for what in (locks.INDEX, locks.ASIDE)):
        return False  # the load of another, whose end nobody has to wait for
    return aside.find(connection, model) is not None or aside.is_worth(connection, model, new())


def join(session: Session, models: Sequence[StoredModel], names: Collection[str]) -> dict[int, StoredModel]:
    """What is beside the tables of these models, by model_id, and stays there while the session lasts.

    For those of ``names`` it is made where it is not there. Raises BusyError where it is put in its place just now.
    """
    found: dict[int, StoredModel] = {}
    for model in models:
        if model.name not in names and aside.find(session.connection, model) is None:
            continue

        def hold(connection: Connection, model: StoredModel = model) -> None:
            if not locks.share(connection, locks.ASIDE, model.model_id):
                raise BusyError(
                    f"another session is putting the table beside that of {model.name} in its place",
                    hint="wait for it, and run the same command again",
                )
            if model.name in names:
                aside.begin(connection, model)

        try:
            session.prepare(hold)
        except BusyError:
            if model.name in names:
                raise
            continue  # what is in there is in use in a moment
        if (there := aside.find(session.connection, model)) is not None:
            found[model.model_id] = there
    return found
