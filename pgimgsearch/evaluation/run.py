"""An evaluation from beginning to end: the truth, every model over it, intervals, speed, and what is kept."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from pgimgsearch.database.connection import Connection, connect, translate
from pgimgsearch.database.models import StoredModel
from pgimgsearch.errors import NotFoundError, SourceError, UsageError
from pgimgsearch.evaluation import copy_detection as copies
from pgimgsearch.evaluation import history, intervals
from pgimgsearch.evaluation.context import Context, EvaluationRequest, Outcome
from pgimgsearch.evaluation.images import EvaluationIngest
from pgimgsearch.evaluation.intervals import Figure
from pgimgsearch.evaluation.protocols import Protocol
from pgimgsearch.evaluation.warnings import Warnings
from pgimgsearch.models.backends import backends
from pgimgsearch.reporter import Reporter

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
    before: history.StoredRun | None = None
    evaluation_id: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All models over the same questions."""

    protocol: Protocol
    data: str
    notes: Warnings
    results: Sequence[Result]


def evaluate(
    url: str, protocol: Protocol, request: EvaluationRequest, *, device: str, trust: bool, reporter: Reporter
) -> Evaluation:
    """Evaluate models by a protocol, and keep the figures where this role may; what is odd is told in any case."""
    _check_options(protocol, request)
    request, notes = _found(request), Warnings()
    bringer = EvaluationIngest(url, request.models, request.collection, device, trust, reporter)
    results = []
    with connect(url) as connection:
        context = Context(connection, request, bringer, notes, reporter)
        try:
            ask = protocol.load()(context)
        finally:
            for line in notes.told():
                reporter.say(line)
        for model in context.models:
            outcome = ask(model)
            speed, query = images_per_second(connection, model), query_ms(connection, model)
            results.append(Result(model.name, outcome, _figures(outcome), model.fingerprint, speed, query))
        return _kept(connection, protocol, request, notes, results, reporter)


def evaluate_file(
    url: str, protocol: Protocol, request: EvaluationRequest, predictions: Path, reporter: Reporter
) -> Evaluation:
    """Evaluate predictions that something else made, and keep the figures."""
    request, notes = _found(request), Warnings()
    if protocol.name != "copy-detection" or set(_given(request)) != {"truth"} or request.truth is None:
        raise UsageError(
            "predictions are judged by a ground truth alone",
            hint="evaluate --protocol copy-detection --predictions FILE --truth FILE",
        )
    try:
        outcome = copies.from_file(predictions, request.truth, notes)
    finally:
        for line in notes.told():
            reporter.say(line)
    with connect(url) as connection:
        return _kept(
            connection, protocol, request, notes, [Result(predictions.name, outcome, _figures(outcome))], reporter
        )


def figures_of(protocol: Protocol, request: EvaluationRequest) -> list[str]:
    """The names of the figures that a protocol gives for a request, before it is asked."""
    names = protocol.figures + (protocol.of_classes if request.key is not None else ())
    return [name.replace("@K", f"@{request.k}") for name in names]


def _figures(outcome: Outcome) -> dict[str, Figure]:
    return intervals.measure(outcome.measures, np.arange(outcome.questions) if outcome.units is None else outcome.units)


def _found(request: EvaluationRequest) -> EvaluationRequest:
    """The same with whole paths, from whatever folder; raises SourceError for one that leads nowhere."""
    paths: dict[str, Any] = {
        name: value.expanduser().resolve() for name, value in _given(request).items() if isinstance(value, Path)
    }
    for path in paths.values():
        if not path.exists():
            raise SourceError(f"there is no {path}", hint="name a file or folder that exists")
    return replace(request, **paths)


def _given(request: EvaluationRequest) -> dict[str, Any]:
    """What a request says, by field; the rest is as always."""
    plain = EvaluationRequest()
    return {
        f.name: getattr(request, f.name) for f in fields(request) if getattr(request, f.name) != getattr(plain, f.name)
    }


def _check_options(protocol: Protocol, request: EvaluationRequest) -> None:
    """Raise UsageError for options that a protocol does not look at: a figure would not be what one thinks."""
    if extra := sorted(set(_given(request)) - {"models", *protocol.options}):
        flags = {"data": "a folder", "k": "--count"}
        named = ", ".join(flags.get(name, "--" + name.replace("_", "-")) for name in extra)
        raise UsageError(f"{protocol.name} does not use {named}", hint="leave it out, or take another --protocol")


def images_per_second(connection: Connection, model: StoredModel) -> float | None:
    """Images a second through the network, in the last run of a hundred, or of some; outputs of one share it."""
    if not backends()[model.backend].has_weights:
        return None
    row = connection.execute(
        "select s.images / s.seconds from (select r.run_id, (t.value ->> 'images')::float as images, "
        "(t.value ->> 'seconds')::float as seconds from imgsearch.ingest_run r, jsonb_each(r.timings) t "
        "where t.key like 'embed %%' and %s = any(string_to_array(substr(t.key, 7), '+'))) s "
        "where s.images between 1 and 1e9 and s.seconds > 1e-3 order by s.images >= 100 desc, s.run_id desc limit 1",
        [model.name],
    ).fetchone()
    return None if row is None or row[0] is None else float(row[0])


def query_ms(connection: Connection, model: StoredModel) -> float | None:
    """The median milliseconds of imgsearch.similar() for ten answers, over images drawn by their numbers."""
    rows = connection.execute(
        "select i.image_id from imgsearch.model m cross join unnest(imgsearch._sample_contents(m, %s)) c "
        "cross join lateral (select image_id from imgsearch.image where content_id = c limit 1) i "
        "where m.model_id = %s",
        [TIMED + 1, model.model_id],
    ).fetchall()
    times = []
    for (image,) in rows:
        start = time.perf_counter()
        query = "select image_id from imgsearch.similar(%s, model => %s)"
        try:
            connection.execute(query, [image, model.name]).fetchall()
        except psycopg.Error as error:
            if not isinstance(translate(error), NotFoundError):
                raise
            continue  # it was deleted meanwhile
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
    connection: Connection,
    protocol: Protocol,
    request: EvaluationRequest,
    notes: Warnings,
    results: Sequence[Result],
    reporter: Reporter,
) -> Evaluation:
    """The evaluation, compared with the one before and kept where this role may."""
    may = history.can_store(connection)
    if not may:
        reporter.say("not kept, as this role may not write: ask for imgsearch.grant_access(ROLE, 'writer')")
    kept = []
    for found in results:
        row: dict[str, Any] = {
            "protocol": protocol.name, "data": _data(request), "model": found.model, "fingerprint": found.fingerprint,
            "options": _options(request), "questions": found.outcome.questions,
            "figures": {name: _interval(figure) for name, figure in found.figures.items()},
            "numbers": {name: _finite(value) for name, value in found.outcome.numbers.items()}, "notes": notes.rows(),
            "images_per_second": found.images_per_second, "query_ms": found.query_ms,
        }  # fmt: skip
        before = history.previous_run(connection, row)
        kept.append(replace(found, before=before, evaluation_id=history.store_run(connection, row) if may else None))
    return Evaluation(protocol, _data(request), notes, kept)


def _interval(figure: Figure) -> dict[str, float | None]:
    return {"value": _finite(figure.value), "low": _finite(figure.low), "high": _finite(figure.high)}


def _finite(value: float) -> float | None:
    """JSON knows no other numbers."""
    return value if math.isfinite(value) else None


def _data(request: EvaluationRequest) -> str:
    """What was asked about, in words that are the same the next time."""
    if request.data is not None:
        return str(request.data)
    if not request.models:
        return str(request.truth)
    return f"collection {request.collection}" if request.collection else "all"


def _options(request: EvaluationRequest) -> dict[str, Any]:
    """What makes two evaluations comparable, beside protocol, data and model."""
    given = {key: value for key, value in _given(request).items() if key not in {"models", "data"}}
    return {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
