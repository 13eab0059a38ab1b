"""After the load: tables beside live ones put in their place, indexes that do not exist yet, models that are ready."""

from collections.abc import Sequence

from pgimgsearch.database import coverage, locks
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel
from pgimgsearch.errors import BusyError, ModelError, RecallError
from pgimgsearch.indexing import build as index
from pgimgsearch.indexing import methods as sizing
from pgimgsearch.indexing import shadow_table as aside
from pgimgsearch.indexing.progress import Progress


def finish(url: str, names: Sequence[str], *, remote: bool, report: Progress | None = None) -> dict[str, str]:
    """Put in place what was loaded beside, build missing indexes and mark the models ready; only an owner may.

    A model that another session fills is left to that, and one that lacks most stored images to whoever fills it,
    as an index is slow to insert into. ``remote`` says that the server is not on this machine. Returns what happened by
    model: ``swapped``, ``built``, ``busy``, ``lacking``, ``left``, ``refused`` where an index would find too little, or
    ``unable`` where the one that is wished for cannot be had here.
    """
    told: dict[str, str] = {}
    with connect(url) as connection:
        limit = sizing.memory_limit(connection, remote=remote)
        for name in names:
            stored = store.get_model(connection, name)
            beside = aside.find(connection, stored)
            if locks.taken(connection, locks.FILL, stored.model_id):
                told |= {stored.name: "busy"} if beside else {}
                continue
            missing = index.is_due(connection, stored)
            if missing and not beside and stored.status == "building":
                covered = coverage.count(connection, stored)
                if covered.missing > covered.embedded:
                    told[stored.name] = "lacking"
                    continue
            if not store.owns(connection, stored):
                told |= {stored.name: "left"} if missing else {}
                continue
            if beside is None:
                aside.drop_former(connection, stored, seconds=0)
            try:
                if beside is not None:
                    _take_in(connection, stored, beside, limit, report)
                    told[stored.name] = "swapped"
                elif missing and index.fulfil(connection, stored, index.Build(limit), report):
                    told[stored.name] = "built"
            except RecallError:
                told[stored.name] = "refused"
            except ModelError:
                told[stored.name] = "unable"
            except BusyError:
                told[stored.name] = "busy"
            if stored.status == "building":
                store.set_status(connection, stored, "ready")
    return told


def _take_in(
    connection: Connection, stored: StoredModel, beside: aside.Aside, limit: int, report: Progress | None
) -> None:
    """What lies beside a table: into that where it is little, else in its place."""
    if aside.is_little(connection, stored, beside):
        aside.give_back(connection, stored, beside)
    else:
        aside.finish(connection, stored, index.as_before(stored, limit), report)
