"""Move an alias to another model on a database that serves: filled, indexed and verified first, then at once."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
from tenacity import retry, retry_if_exception_type, wait_fixed

from pgimgsearch.database import locks
from pgimgsearch.database import models as store
from pgimgsearch.database import texts as text_cache
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.coverage import Coverage
from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings import open_models as opening
from pgimgsearch.embeddings import registry as register
from pgimgsearch.embeddings.loaded_model import TEXTS_AT_ONCE, LoadedModel
from pgimgsearch.errors import BusyError, DatabaseError, EmbedderError, ModelError, UsageError
from pgimgsearch.indexing import build as index
from pgimgsearch.indexing import methods as sizing
from pgimgsearch.indexing import status as index_status
from pgimgsearch.indexing.recall import sample_for
from pgimgsearch.ingest.backfill import Progress, fill, still_lacking
from pgimgsearch.models.encoder import Placement, cannot_read
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.operations import comparison_report as side_by_side
from pgimgsearch.operations import neighbour_overlap as neighbours

Tell = Callable[[str], None]

LOCK_TIMEOUT = "2s"
MOST_LATE = 500  # contents that came in the last moments: what an ingest brings in a second or so
PLAIN, ANYWHERE = Checkpoint(), Placement()


@dataclass(frozen=True, slots=True)
class Wish:
    """What to switch, and what has to hold before: contents that may be missing, and the recall of the index."""

    alias: str
    target: str
    allow_missing: int = 0
    recall: float = 0.95
    sample: int = 100
    max_load: float = 1.0
    remote: bool = False
    checkpoint: Checkpoint = PLAIN
    placement: Placement = ANYWHERE
    page: Path | None = None


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts of the old model's cache: those that were embedded for the new one, and those that it cannot read."""

    carried: int = 0
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Switched:
    """What was verified, and how long the alias was locked. ``overlap`` is the share of neighbours both models name."""

    alias: str
    old: str | None
    new: str
    coverage: Coverage
    recall: float | None
    overlap: float | None
    texts: Texts
    milliseconds: float


def switch(url: str, wish: Wish, tell: Tell, progress: Progress) -> Switched:
    """Fill, index and verify a model, and move the alias to it. Killed, it goes on where it was when called again.

    Until the last step nothing changes for those who ask. Raises ModelError where the model must not take over,
    DriftError where its weights changed on the way, and BusyError where another session is at it.
    """
    with connect(url) as connection, locks.alone(
        connection, f"switch.{wish.alias}", 0, f"another switch of {wish.alias} is running"
    ):  # fmt: skip
        _check(connection, wish)
        model = _open(url, wish, tell)
        with locks.alone(connection, locks.FILL, model.stored.model_id, f"another session fills {model.stored.name}"):
            return _switch(url, connection, model, wish, tell, progress)


def _switch(
    url: str, connection: Connection, model: LoadedModel, wish: Wish, tell: Tell, progress: Progress
) -> Switched:
    name, given_up = model.stored.name, set[int]()
    old = meant_by(connection, wish.alias)
    if old is None:
        tell(f"{wish.alias} is new: it means nothing yet")
    tell(f"filling {name}")
    covered = fill(url, model, progress, max_load=wish.max_load, given_up=given_up)
    _require(connection, model.stored, covered, given_up, wish, old)  # before an index is built for nothing
    recall = _indexed(connection, name, wish, tell, progress)
    shared = _compared(connection, old, model.stored, wish, tell)
    texts = _carry_texts(connection, old, model)
    covered = fill(url, model, progress, max_load=wish.max_load, given_up=given_up)  # what came meanwhile
    late = _require(connection, model.stored, covered, given_up, wish, old)
    if late > MOST_LATE:
        raise ModelError(
            f"{late} images arrive faster than {name} is filled; {wish.alias} stays {old.name if old else 'unset'}",
            hint="raise --max-load, or ingest them with --all-models, and run the same command again",
        )
    late_texts = _carry_texts(connection, old, model)
    texts = Texts(texts.carried + late_texts.carried, late_texts.refused)  # what it cannot read it was asked twice
    if wish.alias != "duplicates":  # which asks nothing new
        _check_embedder(connection, old, model.stored)
    locked = _move(connection, wish.alias, old, model.stored)
    return Switched(wish.alias, old.name if old else None, name, covered, recall, shared, texts, locked)


def meant_by(connection: Connection, alias: str) -> StoredModel | None:
    """The model that those who ask by an alias get now."""
    named = store.aliases(connection)
    name = named.get(alias) or (named.get("default") if alias == "duplicates" else None)
    return None if name is None else store.get_model(connection, name)


def _check(connection: Connection, wish: Wish) -> None:
    """Raise what would stop the switch at its end, before anything is loaded or stored."""
    if any(model.name == wish.alias for model in store.models(connection)):
        raise ModelError(f"{wish.alias} is the name of a model", hint="name an alias: models switch default --to NAME")
    if not wish.alias.strip() or wish.alias != wish.alias.strip():
        raise UsageError(f'an alias is a word, not "{wish.alias}"', hint="for example default, text or duplicates")
    stored, spec = register.look_up(connection, wish.target, wish.checkpoint)
    reads = stored.has_text if stored is not None and stored.fingerprint else spec.text or spec.output == "auto"
    if wish.alias == "text" and not reads:
        raise cannot_read(spec.name)
    if not store.is_owner(connection):
        raise DatabaseError(
            "this role does not own the tables, and a switch makes a table and an index",
            hint="ask their owner to run it; others may run: pgimgsearch models fill NAME",
        )
    if wish.page is not None:
        side_by_side.check(wish.page)


def _open(url: str, wish: Wish, tell: Tell) -> LoadedModel:
    """The model that takes over, loaded, its fingerprint and canary checked; where it is new, it is added unnoticed."""
    wanted = opening.Wish([wish.target], checkpoint=wish.checkpoint, placement=wish.placement, claim=False)
    (model,) = opening.open_models(url, wanted, [], tell=tell)
    if wish.alias == "text" and not model.stored.has_text:
        raise cannot_read(model.stored.name)
    return model


def _require(
    connection: Connection, model: StoredModel, covered: Coverage, given_up: set[int], wish: Wish,
    old: StoredModel | None,
) -> int:  # fmt: skip
    """Raise ModelError where more contents could not be read than may be missing. Returns how many came too late."""
    failed = still_lacking(connection, model, given_up)
    if failed > wish.allow_missing:
        raise ModelError(
            f"{model.name} misses {failed} of {covered.contents} contents; {wish.alias} stays "
            f"{old.name if old else 'unset'}",
            hint="imgsearch.ingest_failure says why; bring files back, forget those that are gone for good "
            f"(pgimgsearch ingest DIR --prune), or allow it: --allow-missing {failed}",
        )
    return max(0, covered.missing - failed)


def _check_embedder(connection: Connection, old: StoredModel | None, new: StoredModel) -> None:
    """Raise EmbedderError where new texts and pictures are answered for the old model, and would not be for the new."""
    try:
        rows = connection.execute("select model, serves from imgsearch.embedder_status()").fetchall()
    except psycopg.Error:
        return  # none is connected, or it is away: nothing gets worse
    serves: dict[str, bool] = dict(rows)
    if old is not None and serves.get(old.name) and not serves.get(new.name):
        raise EmbedderError(
            f"the embedder holds {old.name} and not {new.name}: new texts and pictures would find nothing",
            hint=f"start it with both, and run the same command again, which is quick now: "
            f"pgimgsearch serve --model {old.name} --model {new.name}",
        )


def _indexed(connection: Connection, name: str, wish: Wish, tell: Tell, progress: Progress) -> float | None:
    """The recall of the model's index, built beside what serves; None where a model has none."""
    _build_missing(connection, name, wish, tell, progress)
    if store.get_model(connection, name).index_method == "none":  # none is wanted, or rows are too few for it
        return None
    if not next(row["valid"] for row in index_status.status(connection) if row["model"] == name):
        raise ModelError(f"the index of {name} is not valid", hint=f"run: pgimgsearch index build {name}")
    stored = store.count_embeddings(connection, store.get_model(connection, name))
    sample = sample_for(stored, wish.sample)
    row = connection.execute("select imgsearch.recall(%s, %s, %s)", [name, neighbours.NEIGHBOURS, sample])
    recall: float | None = (row.fetchone() or [None])[0]
    if recall is not None and recall < wish.recall:
        raise ModelError(
            f"the index of {name} finds {recall:.3f} of the true neighbours, not {wish.recall}",
            hint=f"pgimgsearch index tune {name}, and switch again; or ask for less: --recall",
        )
    return recall


def _build_missing(connection: Connection, name: str, wish: Wish, tell: Tell, progress: Progress) -> None:
    """Make the index as it is wanted; where another session is at it, wait for that."""
    waiting = retry(
        retry=retry_if_exception_type(BusyError), wait=wait_fixed(1),
        before_sleep=lambda state: tell(f"waiting: {state.outcome.exception()}")  # type: ignore[union-attr]
        if state.attempt_number == 1 else None,
    )  # fmt: skip
    how = index.Build(
        sizing.memory_limit(connection, remote=wish.remote), concurrently=True, recall=wish.recall,
        workers=1 if wish.max_load < 1 else None,  # slower, and those who ask keep the other cores
    )  # fmt: skip
    model = store.get_model(connection, name)
    built = waiting(index.fulfil)(connection, model, how, lambda _, done, total: progress(done, total))
    if built:
        tell(f"the index of {name} is as it is wanted now")


def _compared(
    connection: Connection, old: StoredModel | None, new: StoredModel, wish: Wish, tell: Tell
) -> float | None:
    """The share of neighbours that both models name, and the page that shows it."""
    if old is None or old.model_id == new.model_id:  # which is there already, and may only lack what came since
        return None
    seen = neighbours.seen_by(connection, old, new, wish.sample)
    if wish.page is not None:
        side_by_side.write(connection, wish.page, (old.name, new.name), seen)
        tell(f"what both models find: {wish.page}")
    return neighbours.overlap(seen)


def _carry_texts(connection: Connection, old: StoredModel | None, new: LoadedModel) -> Texts:
    """Embed the texts that the old model has cached, so that whoever asks for them finds them."""
    if old is None or old.model_id == new.stored.model_id or not (old.has_text and new.stored.has_text):
        return Texts()
    rows = connection.execute(
        "select t.template, t.query from imgsearch.text_embedding t where t.model_id = %s and not exists "
        "(select from imgsearch.text_embedding n where n.model_id = %s and n.key = t.key) "
        "order by t.template, t.used_at",
        [old.model_id, new.stored.model_id],
    ).fetchall()
    refused: list[str] = []
    for template, group in itertools.groupby(rows, lambda row: row[0]):
        queries = [query for _, query in group]
        for start in range(0, len(queries), TEXTS_AT_ONCE):
            refused += _embed_texts(connection, new, queries[start : start + TEXTS_AT_ONCE], template)
    return Texts(len(rows) - len(refused), tuple(refused))


def _embed_texts(connection: Connection, model: LoadedModel, queries: list[str], template: str) -> list[str]:
    """Embed and cache texts. Returns those that the model cannot read."""
    try:
        vectors = model.embed_texts(queries, template)
    except ModelError:
        if len(queries) == 1:
            return queries
        return [text for query in queries for text in _embed_texts(connection, model, [query], template)]
    text_cache.keep(connection, model.stored, queries, vectors, template)
    return []


def _move(connection: Connection, alias: str, old: StoredModel | None, new: StoredModel) -> float:
    """Move the alias, unless somebody else did meanwhile. Returns for how many milliseconds aliases were locked."""
    with connection.transaction():
        connection.execute("select set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
        store.set_status(connection, new, "ready")
        start = time.perf_counter()
        connection.execute("select pg_advisory_xact_lock(hashtext('pgimgsearch.alias'))")  # as set_alias does
        now = meant_by(connection, alias)
        if (now and now.model_id) != (old and old.model_id):
            raise ModelError(
                f"{alias} was moved to {now.name if now else 'nothing'} meanwhile, and stays there",
                hint="run the same command again, which is quick now, if it shall move on",
            )
        if store.aliases(connection).get(alias) != new.name:
            connection.execute("select imgsearch.set_alias(%s, %s)", [alias, new.name])
    return 1000 * (time.perf_counter() - start)
