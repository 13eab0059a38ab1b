"""Copy detection: edited queries that must find the reference they were made of, and others that must find none.

Source: Douze et al. 2021, arXiv:2106.09672; score normalisation and whitening as in Pizzi et al. 2022, "A
Self-Supervised Descriptor for Image Copy Detection" (SSCD), arXiv:2202.10261, section 5.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.models import StoredModel
from pgimgsearch.errors import ModelError, SourceError
from pgimgsearch.evaluation import disc21, examples, metrics
from pgimgsearch.evaluation.context import Context, Evaluate, Outcome
from pgimgsearch.evaluation.copy_ground_truth import Copies, check_some, consistent, gather
from pgimgsearch.evaluation.images import vectors
from pgimgsearch.evaluation.metrics import Curve, Predictions
from pgimgsearch.evaluation.ranking import Columns, Ranked, Vectors, rank
from pgimgsearch.evaluation.warnings import Warnings
from pgimgsearch.models import reduction
from pgimgsearch.models.encoder import unit

CANDIDATES = 10  # predictions a query, as many as the challenge allowed on average
DEEPEST = 100  # of the curve over k


def copies(context: Context) -> Evaluate:
    """Find the reference of each query, and predict none for queries without."""
    found = gather(context, disc21.find(context.request))
    whiten = context.request.whiten
    if whiten is not None:
        for model in context.models:
            _check_whitening(model, whiten, len(found.background))

    def evaluate(model: StoredModel) -> Outcome:
        queries, references, background = (
            vectors(context.connection, model, part) for part in (found.queries, found.references, found.background)
        )
        if whiten is not None:
            queries, references, background = _whitened(whiten, queries, references, background)
        ranked = rank(queries, references, found.right, keep=CANDIDATES, depth=DEEPEST, reporter=context.reporter)
        off = _commonness(queries, background, context.request.score_norm)
        return _outcome(found, ranked, predictions_of(ranked, found.right, off))

    return evaluate


def predictions_of(ranked: Ranked, right: Sequence[Columns], off: NDArray[np.float32]) -> Predictions:
    """The nearest references of each query, with ``off`` (q,) taken from the scores of each."""
    question, place = np.nonzero(ranked.columns >= 0)
    columns = ranked.columns[question, place]
    own = [set(places.tolist()) for places in right]
    so = np.fromiter(
        (c in own[q] for q, c in zip(question.tolist(), columns.tolist(), strict=True)), bool, len(columns)
    )
    scores = (ranked.scores - off[:, None])[question, place].astype(np.float64)
    return Predictions.sorted(question, scores, so, np.array([len(places) for places in right], np.float64))


def from_file(predictions: Path, truth: Path, notes: Warnings) -> Outcome:
    """The same figures of predictions that something else made."""
    pairs, lists_all = consistent(disc21.read_truth(truth), notes)
    check_some(sum(1 for own in pairs.values() if own))
    best: dict[tuple[str, str], float] = {}
    truths = set(pairs)
    for query, reference, score in disc21.read_predictions(predictions):
        if query not in pairs and lists_all:
            notes.add("predictions are of queries that the truth does not name, and are left out", [query])
            continue
        if query not in pairs:
            notes.add("queries are not in the truth and count as without a match", [query])
            pairs[query] = set()
        twice = (query, reference) in best
        notes.add("predictions are given twice; the highest score counts", [f"{query},{reference}"] if twice else [])
        best[query, reference] = max(score, best.get((query, reference), -np.inf))
    if not any(query in truths for query, _ in best):
        raise SourceError(f"{predictions} predicts nothing of any query of {truth}", hint="query ids must be the same")
    place = {query: number for number, query in enumerate(pairs)}
    expected = np.array([len(own) for own in pairs.values()], np.float64)
    found = Predictions.sorted(
        np.array([place[query] for query, _ in best], np.int64), np.array(list(best.values()), np.float64),
        np.array([reference in pairs[query] for query, reference in best], bool), expected,
    )  # fmt: skip
    first = _first_right(found)
    hits = {f"r@{k}": metrics.mean(np.where(expected > 0, first <= k, np.nan)) for k in (1, 3)}
    return Outcome(_measures(hits, found), len(pairs), {}, _curves(found))


def _check_whitening(model: StoredModel, dim: int, pictures_to_fit: int) -> None:
    """Raise ModelError, before any model is evaluated, where one cannot be whitened so."""
    if model.storage == "bit":
        raise ModelError(f"the bits of {model.name} cannot be whitened", hint="leave --whiten out, or that model")
    if dim > model.dim:
        raise ModelError(
            f"{model.name} has {model.dim} dimensions, not {dim}", hint=f"take --whiten {model.dim}, or less"
        )
    if pictures_to_fit < 2 * dim:
        raise ModelError(
            f"{pictures_to_fit} background images are too few to whiten to {dim} dimensions",
            hint=f"take --whiten {max(1, pictures_to_fit // 2)}, or more images",
        )


def _whitened(dim: int, queries: Vectors, references: Vectors, background: Vectors) -> tuple[Vectors, ...]:
    """All of them reduced and whitened as the background is."""
    fitted = reduction.fit(background.rows[background.present], dim, "whiten")
    return tuple(
        Vectors(unit(fitted.apply(part.rows)), part.present, part.storage) for part in (queries, references, background)
    )


def _commonness(queries: Vectors, background: Vectors, nearest: int | None) -> NDArray[np.float32]:
    """(q,) the mean similarity with the nearest of the background: what is like everything is a copy of nothing."""
    if nearest is None:
        return np.zeros(len(queries.rows), np.float32)
    none: list[Columns] = [np.empty(0, np.int64)] * len(queries.rows)
    scores = rank(queries, background, none, keep=nearest).scores
    return np.asarray(np.where(np.isneginf(scores), 0, scores).mean(axis=1))


def _first_right(found: Predictions) -> metrics.Values:
    """(q,) the place of each question's first right prediction among its own, inf where there is none."""
    first, seen = np.full(len(found.expected), np.inf), np.zeros(len(found.expected))
    for question, right in zip(found.question, found.right, strict=True):
        seen[question] += 1
        if right:
            first[question] = min(first[question], seen[question])
    return first


def _outcome(found: Copies, ranked: Ranked, predictions: Predictions) -> Outcome:
    hits = {f"r@{k}": metrics.mean(metrics.hits(ranked, k)) for k in (1, 3)}
    best, worst = examples.choose(
        ranked, 1 / ranked.first, examples.display(found.queries), examples.display(found.references), found.right
    )
    over_k = {"recall over k": metrics.over_k(metrics.hits, ranked, min(DEEPEST, len(found.references)))}
    curves = _curves(predictions) | over_k
    return Outcome(_measures(hits, predictions), len(found.queries), {}, curves, best, worst)


def _measures(hits: dict[str, metrics.Measure], predictions: Predictions) -> dict[str, metrics.Measure]:
    return hits | {"micro-ap": predictions.micro_ap, "r@p90": predictions.recall_at_precision}


def _curves(predictions: Predictions) -> dict[str, Curve]:
    recall, precision = predictions.curve()
    return {
        "precision over recall": Curve(recall, precision),
        "recall over threshold": Curve(predictions.score, recall),
        "precision over threshold": Curve(predictions.score, precision),
    }
