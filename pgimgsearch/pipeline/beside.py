"""Where a run writes: into the live tables, or beside them, where so much comes that their indexes would hold it up."""

import os
from collections.abc import Collection, Sequence

from pgimgsearch.database import aside, locks, store
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.session import Session
from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import BusyError
from pgimgsearch.pipeline.scan import Source


def prefix(source: Source, root: str) -> str:
    """What the paths of a source's scope begin with, in a collection of this root."""
    if source.scope is None or source.scope == root:
        return ""
    return os.path.relpath(source.scope, root).rstrip("/") + "/"


def coming(connection: Connection, source: Source, files: int | None, collection: str | None) -> int:
    """How many of a source's files are new, as far as counts tell; 0 where nobody has counted them."""
    if files is None:
        return 0
    collection_id, _, root = store.open_collection(connection, collection, source.root, source.default_collection)
    known = connection.execute(
        "select count(*) from imgsearch.image where collection_id = %s and starts_with(path, %s)",
        [collection_id, prefix(source, root)],
    ).fetchone()
    assert known is not None
    return max(0, files - int(known[0]))


def chosen(
    connection: Connection, models: Sequence[StoredModel], new: int, wished: bool | None = None
) -> frozenset[str]:
    """The names of the models to write beside: as wished, or those that so many new rows are worth it for.

    A model without an index has nothing to wait for, and gets its rows at once.
    """
    indexed = [model for model in models if model.index_method != "none"]
    if wished is None:
        free = [model for model in indexed if not locks.taken(connection, locks.INDEX, model.model_id)]
        return frozenset(model.name for model in free if aside.is_worth(connection, model, new))
    return frozenset(model.name for model in indexed) if wished else frozenset()


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
