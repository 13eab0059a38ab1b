"""Where a run writes: into live tables, or into shadow tables, where live indexes would slow a large load down."""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from psycopg import sql

from pgimgsearch.database import locks
from pgimgsearch.database.collections import open_collection
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.embeddings.deferred_models import DeferredModels
from pgimgsearch.errors import BusyError, SourceError
from pgimgsearch.indexing.embedding_table import EmbeddingTable, shadow_table
from pgimgsearch.indexing.shadow_table import check_swap, create_shadow, pays_off
from pgimgsearch.reporter import Reporter
from pgimgsearch.sources.source import Source

SHADOW = "{0}: loading into a shadow table; searches use the live table until it is swapped in at the end"


@dataclass(frozen=True, slots=True)
class CountedSource:
    """A source, and how many of its files a run will process; None where counting would mean reading it."""

    source: Source
    files: int | None

    @classmethod
    def of(cls, source: Source, limit: int | None, *, may_be_empty: bool = False) -> Self:
        """Count a source, at most up to a limit; raises SourceError for an empty one."""
        try:
            files = source.count()
        except SourceError:
            if not may_be_empty:
                raise
            files = 0
        return cls(source, min(files, limit) if files and limit else files)


def choose_shadows(
    url: str, models: DeferredModels, sources: Sequence[CountedSource], collection: str | None,
    requested: bool | None, reporter: Reporter,
) -> frozenset[str]:  # fmt: skip
    """The models whose rows go to a shadow table: all as ``requested``, else those for which it pays off."""
    names: set[str] = set()
    with connect(url) as connection:

        def new_rows(model: StoredModel) -> int:
            return sum(count_new(connection, one.source, one.files, collection, model) for one in sources)

        for position, stored in enumerate(models.stored):
            if wants_shadow(connection, stored, partial(new_rows, stored), requested):
                if not requested and models.load()[position].encoder.device == "cpu":
                    continue  # an encoder on a CPU is slower than a live index
                names.add(stored.name)
                reporter.say(SHADOW.format(stored.name))
            elif requested:
                reporter.say(f"{stored.name} has no index; rows are inserted directly")
    return frozenset(names)


def prefix(source: Source, root: str) -> str:
    """What the paths of a source's scope start with, in a collection of this root."""
    if source.scope is None or source.scope == root:
        return ""
    inside = root and source.scope.startswith(root.rstrip("/") + "/")  # else it is another root of the collection
    return (os.path.relpath(source.scope, root) if inside else source.scope).rstrip("/") + "/"


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
