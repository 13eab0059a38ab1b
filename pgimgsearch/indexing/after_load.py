"""After a load: swap shadow tables in, build missing indexes, and mark models ready."""

from collections.abc import Sequence

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel, count_coverage, get_model, set_status
from pgimgsearch.database.privileges import owns_table
from pgimgsearch.errors import BusyError, ModelError, RecallError
from pgimgsearch.indexing.build import BuildOptions, apply_index_spec, is_index_due, with_previous_recall
from pgimgsearch.indexing.embedding_table import EmbeddingTable, shadow_table
from pgimgsearch.indexing.methods import memory_limit
from pgimgsearch.indexing.shadow_table import complete_load, drop_retired, is_small, merge_into_live
from pgimgsearch.reporter import SILENT, Reporter


def after_load(url: str, names: Sequence[str], *, remote: bool, reporter: Reporter = SILENT) -> dict[str, str]:
    """Swap in what was loaded, build missing indexes and mark the models ready, where this role owns them.

    A model that another session fills is left to it, and one that misses most stored images to whoever fills it, as an
    index is slow to insert into. ``remote`` is whether the server is on another machine. Returns the outcome by model:
    ``swapped``, ``built``, ``busy``, ``missing``, ``not owner``, ``refused`` where an index would find too little, or
    ``unable`` where the wanted index cannot be built here.
    """
    outcomes: dict[str, str] = {}
    with connect(url) as connection:
        limit = memory_limit(connection, remote=remote)
        for name in names:
            model = get_model(connection, name)
            outcome = _complete(connection, model, limit, reporter)
            if outcome is not None:
                outcomes[model.name] = outcome
    return outcomes


def _complete(connection: Connection, model: StoredModel, limit: int, reporter: Reporter) -> str | None:
    shadow = shadow_table(connection, model)
    if locks.is_locked(connection, locks.FILL, model.model_id):
        return "busy" if shadow else None
    is_due = is_index_due(connection, model)
    if is_due and not shadow and model.status == "building":
        coverage = count_coverage(connection, model)
        if coverage.missing > coverage.embedded:
            return "missing"
    if not owns_table(connection, model):
        return "not owner" if is_due else None
    if shadow is None:
        drop_retired(connection, model, seconds=0)
    outcome = _build(connection, model, shadow, limit, reporter, is_due=is_due)
    if model.status == "building":
        set_status(connection, model, "ready")
    return outcome


def _build(
    connection: Connection, model: StoredModel, shadow: EmbeddingTable | None, limit: int,
    reporter: Reporter, *, is_due: bool,
) -> str | None:  # fmt: skip
    try:
        if shadow is not None and is_small(connection, model, shadow):
            merge_into_live(connection, model, shadow)
            return "swapped"
        if shadow is not None:
            complete_load(connection, model, with_previous_recall(model, limit), reporter)
            return "swapped"
        if is_due and apply_index_spec(connection, model, BuildOptions(limit), reporter):
            return "built"
    except RecallError:
        return "refused"
    except ModelError:
        return "unable"
    except BusyError:
        return "busy"
    return None
