"""Where a run writes: into live tables, or into shadow tables, where live indexes would slow a large load down."""

import os
from collections.abc import Callable, Collection, Sequence

from psycopg import sql

from pgimgsearch.database import locks
from pgimgsearch.database.collections import open_collection
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.errors import BusyError
from pgimgsearch.indexing.embedding_table import EmbeddingTable, shadow_table
from pgimgsearch.indexing.shadow_table import check_swap, create_shadow, pays_off
from pgimgsearch.sources.source import Source

SHADOW = "{0}: loading into a shadow table; searches use the live table until it is swapped in at the end"


def prefix(source: Source, root: str) -> str:
    """What the paths of a source's scope start with, in a collection of this root."""
    if source.scope is None or source.scope == root:
        return ""
    return os.path.relpath(source.scope, root).rstrip("/") + "/"


def count_new(
    connection: Connection, source: Source, files: int | None, collection: str | None, model: StoredModel
) -> int:
    """How many of a source's files a model has no vector of, as far as counts tell; 0 where nobody counted them."""
    if files is None:
        return 0
    collection_id, _, root = open_collection(connection, collection, source.root, source.default_collection)
    known = connection.execute(
        sql.SQL(
            "select count(*) from imgsearch.image i join {} e using (content_id) "
            "where i.collection_id = %s and starts_with(i.path, %s)"
        ).format(model.table),
        [collection_id, prefix(source, root)],
    ).fetchone()
    assert known is not None
    return max(0, files - int(known[0]))


def wants_shadow(
    connection: Connection, model: StoredModel, new_rows: Callable[[], int], requested: bool | None
) -> bool:
    """Whether to write to a model's shadow table: as requested, else where ``new_rows`` makes it pay off.

    An unfinished shadow is continued. A model without an index has nothing to wait for, and gets its rows directly.
    Raises ModelError where what is requested cannot be done.
    """
    if requested is False or model.index_method == "none":
        return False
    if requested:
        check_swap(connection, model)
        return True
    if any(locks.is_locked(connection, what, model.model_id) for what in (locks.INDEX, locks.SHADOW)):
        return False  # the load of another session, whose end nobody has to wait for
    return shadow_table(connection, model) is not None or pays_off(connection, model, new_rows())


def join_shadows(session: Session, models: Sequence[StoredModel], names: Collection[str]) -> dict[int, EmbeddingTable]:
    """The shadow tables of these models, by model_id, which stay while the session lasts.

    For models in ``names`` one is created where there is none. Raises BusyError where it is being swapped in.
    """
    found: dict[int, EmbeddingTable] = {}
    for model in models:
        if model.name not in names and shadow_table(session.connection, model) is None:
            continue

        def hold(connection: Connection, model: StoredModel = model) -> None:
            if not locks.share(connection, locks.SHADOW, model.model_id):
                raise BusyError(
                    f"another session is swapping in the shadow table of {model.name}",
                    hint="wait for it, and run the same command again",
                )
            if model.name in names:
                create_shadow(connection, model)

        try:
            session.prepare(hold)
        except BusyError:
            if model.name in names:
                raise
            continue  # its rows are live in a moment
        if (shadow := shadow_table(session.connection, model)) is not None:
            found[model.model_id] = shadow
    return found
