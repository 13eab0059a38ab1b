"""Move an alias to another model on a database that serves: filled, indexed and verified first, then at once."""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from tenacity import retry, retry_if_exception_type, wait_fixed

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import (
    Coverage,
    StoredModel,
    count_embeddings,
    get_model,
    list_models,
)
from pgimgsearch.database.privileges import owns_schema
from pgimgsearch.database.texts import cache_texts
from pgimgsearch.embeddings.loaded_model import TEXTS_AT_ONCE, LoadedModel
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.embeddings.registry import look_up
from pgimgsearch.errors import BusyError, DatabaseError, EmbedderError, ModelError, UsageError
from pgimgsearch.indexing.build import BuildOptions, apply_index_spec
from pgimgsearch.indexing.methods import memory_limit
from pgimgsearch.indexing.recall import sample_size
from pgimgsearch.indexing.status import index_status
from pgimgsearch.ingest.backfill import count_missing, fill
from pgimgsearch.models.encoder import Placement, cannot_read
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.operations import neighbour_overlap as neighbours
from pgimgsearch.operations.comparison_report import check, write
from pgimgsearch.operations.neighbour_overlap import NEIGHBOURS, neighbour_pairs
from pgimgsearch.reporter import Reporter

LOCK_TIMEOUT = "2s"
MOST_LATE = 500  # contents that came in the last moments: what an ingest brings in a second or so
PLAIN, ANYWHERE = Checkpoint(), Placement()


@dataclass(frozen=True, slots=True)
class SwitchRequest:
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
    html: Path | None = None


@dataclass(frozen=True, slots=True)
class CarriedTexts:
    """Texts of the old model's cache: those that were embedded for the new one, and those that it cannot read."""

    carried: int = 0
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SwitchResult:
    """What was verified, and how long the alias was locked. ``overlap`` is the share of neighbours both models name."""

    alias: str
    old: str | None
    new: str
    coverage: Coverage
    recall: float | None
    overlap: float | None
    texts: CarriedTexts
    milliseconds: float


def switch(url: str, request: SwitchRequest, reporter: Reporter) -> SwitchResult:
    """Fill, index and verify a model, and move the alias to it. Killed, it goes on where it was when called again.

    Until the last step nothing changes for those who ask. Raises ModelError where the model must not take over,
    DriftError where its weights changed on the way, and BusyError where another session is at it.
    """
    with connect(url) as connection, locks.exclusive(
        connection, f"switch.{request.alias}", 0, f"another switch of {request.alias} is running"
    ):  # fmt: skip
        _check(connection, request)
        model = _open(url, request, reporter)
        with locks.exclusive(
            connection, locks.FILL, model.stored.model_id, f"another session fills {model.stored.name}"
        ):
            return _switch(url, connection, model, request, reporter)


def _switch(
    url: str, connection: Connection, model: LoadedModel, request: SwitchRequest, reporter: Reporter
) -> SwitchResult:
    name, failed = model.stored.name, set[int]()
    old = alias_target(connection, request.alias)
    if old is None:
        reporter.say(f"{request.alias} is new: it means nothing yet")
    reporter.say(f"filling {name}")
    covered = fill(url, model, max_load=request.max_load, failed_contents=failed, reporter=reporter)
    _require(connection, model.stored, covered, failed, request, old)  # before an index is built for nothing
    recall = _indexed(connection, name, request, reporter)
    shared = _compared(connection, old, model.stored, request, reporter)
    texts = _carry_texts(connection, old, model)
    covered = fill(
        url, model, max_load=request.max_load, failed_contents=failed, reporter=reporter
    )  # what came meanwhile
    late = _require(connection, model.stored, covered, failed, request, old)
    if late > MOST_LATE:
        raise ModelError(
            f"{late} images arrive faster than {name} is filled; {request.alias} stays {old.name if old else 'unset'}",
            hint="raise --max-load, or ingest them with --all-models, and run the same command again",
        )
    late_texts = _carry_texts(connection, old, model)
    texts = CarriedTexts(
        texts.carried + late_texts.carried, late_texts.refused
    )  # what it cannot read it was asked twice
    if request.alias != "duplicates":  # which asks nothing new
        _check_embedder(connection, old, model.stored)
    locked = _move_alias(connection, request.alias, old, model.stored)
    return SwitchResult(request.alias, old.name if old else None, name, covered, recall, shared, texts, locked)


def alias_target(connection: Connection, alias: str) -> StoredModel | None:
    """The model that those who ask by an alias get now."""
    row = connection.execute("select imgsearch._alias_target(%s)", [alias]).fetchone()
    return get_model(connection, row[0]) if row and row[0] else None


def _check(connection: Connection, request: SwitchRequest) -> None:
    """Raise what would stop the switch at its end, before anything is loaded or stored."""
    if any(model.name == request.alias for model in list_models(connection)):
        raise ModelError(
            f"{request.alias} is the name of a model", hint="name an alias: models switch default --to NAME"
        )
    if not request.alias.strip() or request.alias != request.alias.strip():
        raise UsageError(f'an alias is a word, not "{request.alias}"', hint="for example default, text or duplicates")
    stored, spec = look_up(connection, request.target, request.checkpoint)
    reads = stored.has_text if stored is not None and stored.fingerprint else spec.text or spec.output == "auto"
    if request.alias == "text" and not reads:
        raise cannot_read(spec.name)
    if not owns_schema(connection):
        raise DatabaseError(
            "this role does not own the tables, and a switch makes a table and an index",
            hint="ask their owner to run it; others may run: pgimgsearch models fill NAME",
        )
    if request.html is not None:
        check(request.html)


def _open(url: str, request: SwitchRequest, reporter: Reporter) -> LoadedModel:
    """The model that takes over, loaded, its fingerprint and canary checked; where it is new, it is added unnoticed."""
    wanted = ModelRequest([request.target], checkpoint=request.checkpoint, placement=request.placement, claim=False)
    (model,) = open_models(url, wanted, [], reporter=reporter)
    if request.alias == "text" and not model.stored.has_text:
        raise cannot_read(model.stored.name)
    return model


def _require(
    connection: Connection, model: StoredModel, covered: Coverage, failed: set[int], request: SwitchRequest,
    old: StoredModel | None,
) -> int:  # fmt: skip
    """Raise ModelError where more contents could not be read than may be missing. Returns how many came too late."""
    missing = count_missing(connection, model, failed)
    if missing > request.allow_missing:
        raise ModelError(
            f"{model.name} misses {missing} of {covered.contents} contents; {request.alias} stays "
            f"{old.name if old else 'unset'}",
            hint="imgsearch.ingest_failure says why; bring files back, forget those that are gone for good "
            f"(pgimgsearch ingest DIR --prune), or allow it: --allow-missing {missing}",
        )
    return max(0, covered.missing - missing)


def _check_embedder(connection: Connection, old: StoredModel | None, new: StoredModel) -> None:
    """Raise EmbedderError where new texts and images are answered for the old model, and would not be for the new."""
    try:
        rows = connection.execute("select model, serves from imgsearch.embedder_status()").fetchall()
    except psycopg.Error:
        return  # none is connected, or it is away: nothing gets worse
    serves: dict[str, bool] = dict(rows)
    if old is not None and serves.get(old.name) and not serves.get(new.name):
        raise EmbedderError(
            f"the embedder holds {old.name} and not {new.name}: new texts and images would find nothing",
            hint="once serve says that it serves the new one, run the same command again, which is quick now; "
            f"a serve with --model needs both: pgimgsearch serve --model {old.name} --model {new.name}",
        )


def _indexed(connection: Connection, name: str, request: SwitchRequest, reporter: Reporter) -> float | None:
    """The recall of the model's index, built beside what serves; None where a model has none."""
    _build_missing(connection, name, request, reporter)
    if get_model(connection, name).index_method == "none":  # none is wanted, or rows are too few for it
        return None
    if not next(row["valid"] for row in index_status(connection) if row["model"] == name):
        raise ModelError(f"the index of {name} is not valid", hint=f"run: pgimgsearch index build {name}")
    stored = count_embeddings(connection, get_model(connection, name))
    sample = sample_size(stored, request.sample)
    row = connection.execute("select imgsearch.recall(%s, %s, %s)", [name, NEIGHBOURS, sample])
    recall: float | None = (row.fetchone() or [None])[0]
    if recall is not None and recall < request.recall:
        raise ModelError(
            f"the index of {name} finds {recall:.3f} of the true neighbours, not {request.recall}",
            hint=f"pgimgsearch index tune {name}, and switch again; or ask for less: --recall",
        )
    return recall


def _build_missing(connection: Connection, name: str, request: SwitchRequest, reporter: Reporter) -> None:
    """Make the index as it is wanted; where another session is at it, wait for that."""
    waiting = retry(
        retry=retry_if_exception_type(BusyError), wait=wait_fixed(1),
        before_sleep=lambda state: reporter.say(f"waiting: {state.outcome.exception()}")  # type: ignore[union-attr]
        if state.attempt_number == 1 else None,
    )  # fmt: skip
    how = BuildOptions(
        memory_limit(connection, remote=request.remote), concurrently=True, recall=request.recall,
        workers=1 if request.max_load < 1 else None,  # slower, and those who ask keep the other cores
    )  # fmt: skip
    model = get_model(connection, name)
    built = waiting(apply_index_spec)(connection, model, how, reporter)
    if built:
        reporter.say(f"the index of {name} is as configured now")


def _compared(
    connection: Connection, old: StoredModel | None, new: StoredModel, request: SwitchRequest, reporter: Reporter
) -> float | None:
    """The share of neighbours that both models name, and the html that shows it."""
    if old is None or old.model_id == new.model_id:  # which is there already, and may only lack what came since
        return None
    seen = neighbour_pairs(connection, old, new, request.sample)
    if request.html is not None:
        write(connection, request.html, (old.name, new.name), seen)
        reporter.say(f"what both models find: {request.html}")
    return neighbours.overlap(seen)


def _carry_texts(connection: Connection, old: StoredModel | None, new: LoadedModel) -> CarriedTexts:
    """Embed the texts that the old model has cached, so that whoever asks for them finds them."""
    if old is None or old.model_id == new.stored.model_id or not (old.has_text and new.stored.has_text):
        return CarriedTexts()
    rows = connection.execute(
        "select t.template, t.query from imgsearch.text_embedding t where t.model_id = %s and not exists "
        "(select from imgsearch.text_embedding n join imgsearch.model m on m.model_id = n.model_id "
        "where n.model_id = %s and n.key = t.key and n.fingerprint is not distinct from m.fingerprint) "
        "order by t.template, t.used_at",
        [old.model_id, new.stored.model_id],
    ).fetchall()
    refused: list[str] = []
    for template, group in itertools.groupby(rows, lambda row: row[0]):
        queries = [query for _, query in group]
        for start in range(0, len(queries), TEXTS_AT_ONCE):
            refused += _embed_texts(connection, new, queries[start : start + TEXTS_AT_ONCE], template)
    return CarriedTexts(len(rows) - len(refused), tuple(refused))


def _embed_texts(connection: Connection, model: LoadedModel, queries: list[str], template: str) -> list[str]:
    """Embed and cache texts. Returns those that the model cannot read."""
    try:
        vectors = model.embed_texts(queries, template)
    except (ModelError, ValueError):  # a tokenizer's library raises the latter: "&#" and 5,000 digits
        if len(queries) == 1:
            return queries
        return [text for query in queries for text in _embed_texts(connection, model, [query], template)]
    cache_texts(connection, model.stored, queries, vectors, template)
    return []


def _move_alias(connection: Connection, alias: str, old: StoredModel | None, new: StoredModel) -> float:
    """Move the alias, unless another session did. Returns for how many milliseconds aliases were locked."""
    with connection.transaction():
        connection.execute("select set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
        start = time.perf_counter()
        connection.execute(
            "select imgsearch.switch_alias(%s, %s, %s, null)", [alias, new.name, old.name if old else ""]
        )
    return 1000 * (time.perf_counter() - start)
