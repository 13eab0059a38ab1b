"""An evaluation from beginning to end: the truth, every model over it, intervals, speed, and what is kept."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel
from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.evaluation import copy_detection as copies
from pgimgsearch.evaluation import history, intervals
from pgimgsearch.evaluation.context import Context, Outcome, Wish
from pgimgsearch.evaluation.images import Bringer, Tell
from pgimgsearch.evaluation.intervals import Figure
from pgimgsearch.evaluation.protocols import Protocol
from pgimgsearch.evaluation.ranking import Progress
from pgimgsearch.evaluation.warnings import Notes
from pgimgsearch.models.backend import backends

TIMED = 20  # queries, after one that is not


@dataclass(frozen=True, slots=True)
class Result:
    """What one model reached. ``before`` is the last time that it was asked the same."""

    model: str
    outcome: Outcome
    figures: Mapping[str, Figure]
    fingerprint: str | None = None
    images_per_second: float | None = None
    query_ms: float | None = None
    before: history.Kept | None = None
    evaluation_id: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All models over the same questions."""

    protocol: Protocol
    data: str
    notes: Notes
    results: Sequence[Result]


def evaluate(
    url: str, protocol: Protocol, wish: Wish, *, device: str, trust: bool, tell: Tell, progress: Progress
) -> Evaluation:
    """Evaluate models by a protocol, and keep the figures where this role may; what is odd is told in any case."""
    _check_options(protocol, wish)
    wish, notes = _found(wish), Notes()
    bringer = Bringer(url, wish.models, wish.collection, device, trust, tell, progress)
    results = []
    with connect(url) as connection:
        context = Context(connection, wish, bringer, notes, progress)
        try:
            ask = protocol.load()(context)
        finally:
            for line in notes.told():
                tell(line)
        for model in context.models:
            outcome = ask(model)
            speed, query = images_per_second(connection, model), query_ms(connection, model)
            results.append(Result(model.name, outcome, _figures(outcome), model.fingerprint, speed, query))
        return _kept(connection, protocol, wish, notes, results, tell)


def evaluate_file(url: str, protocol: Protocol, wish: Wish, predictions: Path, tell: Tell) -> Evaluation:
    """Evaluate predictions that something else made, and keep the figures."""
    wish, notes = _found(wish), Notes()
    if protocol.name != "copy-detection" or set(_given(wish)) != {"truth"} or wish.truth is None:
        raise UsageError(
            "predictions are judged by a ground truth alone",
            hint="evaluate --protocol copy-detection --predictions FILE --truth FILE",
        )
    try:
        outcome = copies.from_file(predictions, wish.truth, notes)
    finally:
        for line in notes.told():
            tell(line)
    with connect(url) as connection:
        return _kept(connection, protocol, wish, notes, [Result(predictions.name, outcome, _figures(outcome))], tell)


def figures_of(protocol: Protocol, wish: Wish) -> list[str]:
    """The names of the figures that a protocol gives for a wish, before it is asked."""
    names = protocol.figures + (protocol.of_classes if wish.key is not None else ())
    return [name.replace("@K", f"@{wish.k}") for name in names]


def _figures(outcome: Outcome) -> dict[str, Figure]:
    return intervals.measure(outcome.measures, np.arange(outcome.questions) if outcome.units is None else outcome.units)


def _found(wish: Wish) -> Wish:
    """The same with whole paths, from whatever folder; raises SourceError for one that leads nowhere."""
    paths: dict[str, Any] = {
        name: value.expanduser().resolve() for name, value in _given(wish).items() if isinstance(value, Path)
    }
    for path in paths.values():
        if not path.exists():
            raise SourceError(f"there is no {path}", hint="name a file or folder that exists")
    return replace(wish, **paths)


def _given(wish: Wish) -> dict[str, Any]:
    """What a wish says, by field; the rest is as always."""
    plain = Wish()
    return {f.name: getattr(wish, f.name) for f in fields(wish) if getattr(wish, f.name) != getattr(plain, f.name)}


def _check_options(protocol: Protocol, wish: Wish) -> None:
    """Raise UsageError for options that a protocol does not look at: a figure would not be what one thinks."""
    if extra := sorted(set(_given(wish)) - {"models", *protocol.options}):
        flags = {"data": "a folder", "k": "--count"}
        named = ", ".join(flags.get(name, "--" + name.replace("_", "-")) for name in extra)
        raise UsageError(f"{protocol.name} does not use {named}", hint="leave it out, or take another --protocol")


def images_per_second(connection: Connection, model: StoredModel) -> float | None:
    """Pictures a second through the network, in the last run of a hundred, or of some; outputs of one share it."""
    if not backends()[model.backend].has_weights:
        return None
    row = connection.execute(
        "select (t.value ->> 'pictures')::float / nullif((t.value ->> 'seconds')::float, 0) "
        "from imgsearch.ingest_run r, jsonb_each(r.timings) t where t.key like 'embed %%' "
        "and %s = any(string_to_array(substr(t.key, 7), '+')) and (t.value ->> 'pictures')::int > 0 "
        "order by (t.value ->> 'pictures')::int >= 100 desc, r.run_id desc limit 1",
        [model.name],
    ).fetchone()
    return None if row is None or row[0] is None else float(row[0])


def query_ms(connection: Connection, model: StoredModel) -> float | None:
    """The median milliseconds of imgsearch.similar() for ten answers, over images drawn by their numbers."""
    rows = connection.execute(
        "select i.image_id from imgsearch.model m cross join unnest(imgsearch._drawn(m, %s)) c "
        "cross join lateral (select image_id from imgsearch.image where content_id = c limit 1) i "
        "where m.model_id = %s",
        [TIMED + 1, model.model_id],
    ).fetchall()
    times = []
    for (image,) in rows:
        start = time.perf_counter()
        connection.execute("select image_id from imgsearch.similar(%s, model => %s)", [image, model.name]).fetchall()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:]) if len(times) > 1 else None


def differences(found: Evaluation) -> list[str]:
    """Each other model less the first, with the interval of the difference, in words."""
    first, *others = found.results
    return [
        f"{other.model} less {first.model}: "
        + ", ".join(
            f"{name} {figure.value - first.figures[name].value:+.3f} ({low:+.3f} to {high:+.3f})"
            for name, figure in other.figures.items()
            for low, high in [figure.less(first.figures[name])]
        )
        for other in others
    ]


def summary(found: Evaluation) -> dict[str, Any]:
    """The whole, ready for JSON."""
    return {
        "protocol": found.protocol.name, "source": found.protocol.source, "data": found.data,
        "notes": found.notes.rows(), "models": [_row(found, result) for result in found.results],
    }  # fmt: skip


def _row(found: Evaluation, result: Result) -> dict[str, Any]:
    first = found.results[0]
    return {
        "model": result.model, "evaluation_id": result.evaluation_id, "questions": result.outcome.questions,
        "figures": {
            name: _interval(figure)
            | ({} if result is first else {"difference": [_finite(v) for v in figure.less(first.figures[name])]})
            for name, figure in result.figures.items()
        },
        "numbers": {name: _finite(value) for name, value in result.outcome.numbers.items()},
        "images_per_second": result.images_per_second, "query_ms": result.query_ms,
        "published": {name: value for (own, name), value in found.protocol.published.items() if own == result.model},
        "before": None if result.before is None else {
            "evaluation_id": result.before.evaluation_id, "evaluated_at": result.before.evaluated_at,
            "figures": result.before.figures, "same_model": result.before.fingerprint == result.fingerprint,
        },
    }  # fmt: skip


def _kept(
    connection: Connection, protocol: Protocol, wish: Wish, notes: Notes, results: Sequence[Result], tell: Tell
) -> Evaluation:
    """The evaluation, compared with the one before and kept where this role may."""
    may = history.can_keep(connection)
    if not may:
        tell("not kept, as this role may not write: ask for imgsearch.grant_access(ROLE, 'writer')")
    kept = []
    for found in results:
        row: dict[str, Any] = {
            "protocol": protocol.name, "data": _data(wish), "model": found.model, "fingerprint": found.fingerprint,
            "options": _options(wish), "questions": found.outcome.questions,
            "figures": {name: _interval(figure) for name, figure in found.figures.items()},
            "numbers": {name: _finite(value) for name, value in found.outcome.numbers.items()}, "notes": notes.rows(),
            "images_per_second": found.images_per_second, "query_ms": found.query_ms,
        }  # fmt: skip
        before = history.before(connection, row)
        kept.append(replace(found, before=before, evaluation_id=history.keep(connection, row) if may else None))
    return Evaluation(protocol, _data(wish), notes, kept)


def _interval(figure: Figure) -> dict[str, float | None]:
    return {"value": _finite(figure.value), "low": _finite(figure.low), "high": _finite(figure.high)}


def _finite(value: float) -> float | None:
    """JSON knows no other numbers."""
    return value if math.isfinite(value) else None


def _data(wish: Wish) -> str:
    """What was asked about, in words that are the same the next time."""
    if wish.data is not None:
        return str(wish.data)
    if not wish.models:
        return str(wish.truth)
    return f"collection {wish.collection}" if wish.collection else "all"


def _options(wish: Wish) -> dict[str, Any]:
    """What makes two evaluations comparable, beside protocol, data and model."""
    given = {key: value for key, value in _given(wish).items() if key not in {"models", "data"}}
    return {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
