"""Move an alias to another model on a database that serves: filled, indexed and verified first, then at once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import sql
from tenacity import retry, retry_if_exception_type, wait_fixed

from pgimgsearch.database import index, store
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import BusyError, ModelError
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.operations import fill
from pgimgsearch.operations.fill import Coverage, Progress
from pgimgsearch.pipeline import opening, run
from pgimgsearch.pipeline.loaded import TEXTS_AT_ONCE, LoadedModel

Tell = Callable[[str], None]

NEIGHBOURS = 10
LOCK_TIMEOUT = "2s"  # for the alias, behind which every query waits
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
    memory_limit: int = 1024
    checkpoint: Checkpoint = PLAIN
    placement: Placement = ANYWHERE


@dataclass(frozen=True, slots=True)
class Switched:
    """What was verified, and how long the alias was locked. ``overlap`` is the share of neighbours both models name."""

    alias: str
    old: str | None
    new: str
    coverage: Coverage
    recall: float | None
    overlap: float | None
    milliseconds: float


def switch(url: str, wish: Wish, tell: Tell, progress: Progress) -> Switched:
    """Fill, index and verify a model, and move the alias to it. Killed, it goes on where it was when called again.

    Until the last step nothing changes for those who ask. Raises ModelError where the model must not take over, and
    BusyError where another switch of the alias is running.
    """
    with connect(url) as connection, _alone(connection, wish.alias):
        old = _present(connection, wish.alias)
        model = _open(url, wish, tell)
        name = model.stored.name
        if old is not None and old.name == name:
            raise ModelError(f"{wish.alias} is {name} already", hint="see: pgimgsearch models list")
        if wish.alias == "text" and not model.stored.has_text:
            raise ModelError(f"{name} cannot read text", hint="the alias text needs a model that can")
        options = run.Options(max_load=wish.max_load)
        fill.fill(url, model, options, progress)
        recall = _indexed(connection, name, wish, tell, progress)
        covered = fill.fill(url, model, options, progress)  # what came while the index was built
        if covered.missing > wish.allow_missing:
            raise ModelError(
                f"{name} misses {covered.missing} of {covered.contents} contents; {wish.alias} stays "
                f"{old.name if old else 'unset'}",
                hint="imgsearch.ingest_failure says why; bring files back, or allow it: --allow-missing "
                f"{covered.missing}",
            )
        overlap = None if old is None else neighbour_overlap(connection, old, model.stored, wish.sample)
        if old is not None and old.has_text and model.stored.has_text:
            texts = carry_texts(connection, old, model)
            tell(f"{texts} cached texts embedded for {name}")
        store.set_status(connection, model.stored, "ready")
        locked = _move(connection, wish.alias, name)
    return Switched(wish.alias, old.name if old else None, name, covered, recall, overlap, locked)


def rollback(connection: Connection, alias: str) -> str:
    """Point an alias at the model that it meant before. Returns that model's name."""
    row = connection.execute("select imgsearch.rollback_alias(%s)", [alias]).fetchone()
    assert row is not None
    return str(row[0])


def carry_texts(connection: Connection, old: StoredModel, new: LoadedModel) -> int:
    """Embed the texts that the old model has cached, so that whoever asks for them finds them. Returns how many."""
    rows = connection.execute(
        "select t.template, array_agg(t.query order by t.used_at) from imgsearch.text_embedding t "
        "where t.model_id = %s group by 1",
        [old.model_id],
    ).fetchall()
    carried = 0
    for template, texts in rows:
        missing = store.missing_texts(connection, new.stored, texts, template)
        for start in range(0, len(missing), TEXTS_AT_ONCE):
            part = missing[start : start + TEXTS_AT_ONCE]
            store.cache_texts(connection, new.stored, part, new.embed_texts(part, template), template)
        carried += len(missing)
    return carried


def neighbour_overlap(connection: Connection, one: StoredModel, other: StoredModel, sample: int) -> float | None:
    """The share of the ten nearest images that two models have in common, over images drawn at random."""
    both = sql.SQL(
        "select i.image_id from imgsearch.model m cross join unnest(imgsearch._drawn(m, %s)) c "
        "join {} e on e.content_id = c cross join lateral (select image_id from imgsearch.image where content_id = c "
        "limit 1) i where m.model_id = %s"
    ).format(other.table)
    shares = []
    for (image,) in connection.execute(both, [sample, one.model_id]).fetchall():
        mine, theirs = _neighbours(connection, image, one), _neighbours(connection, image, other)
        if mine or theirs:
            shares.append(len(mine & theirs) / max(len(mine), len(theirs)))
    return sum(shares) / len(shares) if shares else None


def _neighbours(connection: Connection, image: int, model: StoredModel) -> set[int]:
    query = "select image_id from imgsearch.similar(%s, k => %s, model => %s)"
    return {row[0] for row in connection.execute(query, [image, NEIGHBOURS, model.name]).fetchall()}


def _present(connection: Connection, alias: str) -> StoredModel | None:
    name = store.aliases(connection).get(alias)
    return None if name is None else store.get_model(connection, name)


def _open(url: str, wish: Wish, tell: Tell) -> LoadedModel:
    """The model that takes over, loaded, its fingerprint and canary checked; added where it is new."""
    wanted = opening.Wish([wish.target], checkpoint=wish.checkpoint, placement=wish.placement)
    (model,) = opening.open_models(url, wanted, [], run.Options(), tell)
    return model


def _indexed(connection: Connection, name: str, wish: Wish, tell: Tell, progress: Progress) -> float | None:
    """The recall of the model's index, built beside what serves; None where a model cannot be indexed."""
    stored = store.get_model(connection, name)
    if not index.can_index(stored):
        return None
    if _build_missing(connection, name, wish.memory_limit, progress):
        tell(f"index built: {name}")
    row = connection.execute("select imgsearch.recall(%s, %s, %s)", [name, NEIGHBOURS, wish.sample]).fetchone()
    recall = row[0] if row else None
    if recall is not None and recall < wish.recall:
        raise ModelError(
            f"the index of {name} finds {recall:.3f} of the true neighbours, not {wish.recall}",
            hint=f"pgimgsearch index tune {name}, and switch again; or ask for less: --recall",
        )
    return recall


@retry(retry=retry_if_exception_type(BusyError), wait=wait_fixed(1))
def _build_missing(connection: Connection, name: str, memory_limit: int, progress: Progress) -> bool:
    """Build the index of a model if it has none; where another session is at it, wait for that. Returns whether."""
    stored = store.get_model(connection, name)
    if stored.index_method != "none":
        return False
    index.build(
        connection, stored, memory_limit=memory_limit, concurrently=True,
        report=lambda _, done, total: progress(done, total),
    )  # fmt: skip
    return True


def _move(connection: Connection, alias: str, name: str) -> float:
    """Move the alias. Returns for how many milliseconds its row was locked."""
    with connection.transaction():
        connection.execute("select set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
        start = time.perf_counter()
        connection.execute("select imgsearch.set_alias(%s, %s)", [alias, name])
    return 1000 * (time.perf_counter() - start)


@contextmanager
def _alone(connection: Connection, alias: str) -> Iterator[None]:
    """One switch of an alias at a time."""
    key = f"pgimgsearch.switch.{alias}"
    row = connection.execute("select pg_try_advisory_lock(hashtext(%s))", [key]).fetchone()
    if row != (True,):
        raise BusyError(f"another switch of {alias} is running", hint="wait for it, or stop it with Ctrl-C")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("select pg_advisory_unlock(hashtext(%s))", [key])
