"""Copy detection: edited queries that must find the reference they were made of, and others that must find none.

Source: Douze et al. 2021, arXiv:2106.09672; score normalisation and whitening as in Pizzi et al. 2022, "A
Self-Supervised Descriptor for Image Copy Detection" (SSCD), arXiv:2202.10261, section 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import ModelError, SourceError
from pgimgsearch.evaluation import disc21, examples, metrics, pictures
from pgimgsearch.evaluation.context import Context, Evaluate, Outcome
from pgimgsearch.evaluation.metrics import Curve, Predictions
from pgimgsearch.evaluation.names import Names
from pgimgsearch.evaluation.notes import Notes
from pgimgsearch.evaluation.pictures import Picture
from pgimgsearch.evaluation.ranking import Columns, Ranked, Vectors, rank
from pgimgsearch.models import reduction
from pgimgsearch.models.encoder import unit
from pgimgsearch.pipeline.scan import files_source, walk

CANDIDATES = 10  # predictions a query, as many as the challenge allowed on average
DEEPEST = 100  # of the curve over k

Right = list[Columns]


@dataclass(frozen=True, slots=True)
class Copies:
    """Distinct pictures of the three parts, and the places of each query's references."""

    queries: Sequence[Picture]
    references: Sequence[Picture]
    background: Sequence[Picture]
    right: Right


def copies(context: Context) -> Evaluate:
    """Find the reference of each query, and predict none for queries without."""
    layout = disc21.find(context.wish)
    found = _gather(context, layout)

    def evaluate(model: StoredModel) -> Outcome:
        queries, references, background = (
            pictures.vectors(context.connection, model, part)
            for part in (found.queries, found.references, found.background)
        )
        if context.wish.whiten is not None:
            queries, references, background = _whitened(context.wish.whiten, queries, references, background)
        ranked = rank(queries, references, found.right, keep=CANDIDATES, depth=DEEPEST, progress=context.progress)
        off = _commonness(queries, background, context.wish.score_norm)
        return _outcome(found, ranked, predictions_of(ranked, found.right, off))

    return evaluate


def predictions_of(ranked: Ranked, right: Right, off: NDArray[np.float32]) -> Predictions:
    """The nearest references of each query, with ``off`` (q,) taken from the scores of each."""
    question, place = np.nonzero(ranked.columns >= 0)
    columns = ranked.columns[question, place]
    so = np.array([column in set(right[q].tolist()) for q, column in zip(question, columns, strict=True)], bool)
    scores = (ranked.scores - off[:, None])[question, place].astype(np.float64)
    return Predictions.sorted(question, scores, so, np.array([len(own) for own in right], np.float64))


def from_file(predictions: Path, truth: Path, notes: Notes) -> Outcome:
    """The same figures of predictions that something else made."""
    pairs = _consistent(disc21.read_truth(truth), notes)
    best: dict[tuple[str, str], float] = {}
    repeated = []
    for query, reference, score in disc21.read_predictions(predictions):
        if (query, reference) in best:
            repeated.append(f"{query},{reference}")
        if query in pairs:
            best[query, reference] = max(score, best.get((query, reference), -np.inf))
        else:
            notes.add("predictions are of queries that the truth does not name", [query])
    notes.add("predictions are given twice; the highest score counts", repeated)
    place = {query: number for number, query in enumerate(pairs)}
    _check_some(sum(1 for own in pairs.values() if own))
    rows = [(place[query], score, reference in pairs[query]) for (query, reference), score in best.items()]
    if not rows:
        raise SourceError(f"{predictions} predicts nothing of any query of {truth}", hint="query ids must be the same")
    question, scores, so = (np.array(column) for column in zip(*rows, strict=True))
    expected = np.array([len(own) for own in pairs.values()], np.float64)
    found = Predictions.sorted(question.astype(np.int64), scores.astype(np.float64), so.astype(bool), expected)
    first = _first_right(found)
    hits = {f"r@{k}": metrics.mean(np.where(expected > 0, first <= k, np.nan)) for k in (1, 3)}
    return Outcome(
        hits | {"micro-ap": found.micro_ap, "r@p90": found.recall_at_precision},
        len(pairs), curves={"precision over recall": Curve(*found.curve())},
    )  # fmt: skip


def _gather(context: Context, layout: disc21.Layout) -> Copies:
    """Bring all parts into the database, and turn the truth into places; what it names in vain is noted."""
    notes, wish = context.notes, context.wish
    pairs = _consistent(disc21.read_truth(layout.truth), notes)
    every_reference, queries = walk(layout.references), walk(layout.queries)
    references = every_reference[: wish.limit_references]
    background = walk(layout.background) if layout.background and (wish.score_norm or wish.whiten) else []
    if not background and (wish.score_norm or wish.whiten):
        raise SourceError(
            "score normalisation and whitening need pictures that are neither queries nor references",
            hint="name a folder of them: --background DIR",
        )
    brought = context.bringer.bring(files_source(layout.root, [*references, *queries, *background]), notes)
    here = {picture.location: picture for picture in context.settle(brought)}
    by_content = {picture.content_id: picture for picture in here.values()}
    content = {picture.location: picture.content_id for picture in brought if picture.content_id in by_content}

    def present(files: Sequence[Path]) -> list[Picture]:
        return [by_content[c] for c in dict.fromkeys(content[str(f)] for f in files if str(f) in content)]

    asked, there = present(queries), present(references)
    place = {picture.content_id: number for number, picture in enumerate(there)}
    right: dict[int, set[int]] = {picture.content_id: set() for picture in asked}
    names, queries_named, known = Names(map(str, queries)), set(), Names(map(str, every_reference))
    limit = len(references)
    lost: set[int] = set()
    for query, own in pairs.items():
        number = names.find(query, str(layout.queries))
        if number is None:
            notes.add("queries of the truth are not there", [query])
            continue
        queries_named.add(number)
        own_content = content.get(str(queries[number]))
        if own_content is None:
            continue  # noted as a file that cannot be read
        for reference in own:
            at = known.find(reference, str(layout.references))
            if at is None or (at < limit and str(references[at]) not in content):
                notes.add("references of the truth are not there; their queries are left out", [reference])
                lost.add(own_content)
            elif at >= limit:
                notes.add("queries have their reference beyond the limit and count as without a match", [query])
            else:
                right[own_content].add(place[content[str(references[at])]])
    notes.add("queries are not in the truth and count as without a match",
              (f.name for n, f in enumerate(queries) if n not in queries_named))  # fmt: skip
    asked = [picture for picture in asked if picture.content_id not in lost]
    found = Copies(
        asked, there, present(background),
        [np.array(sorted(right[picture.content_id]), np.int64) for picture in asked],
    )  # fmt: skip
    _check(context.connection, found, notes)
    return found


def _consistent(rows: Sequence[disc21.Pair], notes: Notes) -> dict[str, set[str]]:
    """Query -> its references; rows that say the same again, or the contrary, are noted."""
    pairs: dict[str, set[str]] = {}
    nothing: set[str] = set()
    for query, reference in rows:
        own = pairs.setdefault(query, set())
        if reference is None:
            notes.add("rows of the truth are repeated", [query] if query in nothing else [])
            nothing.add(query)
        else:
            notes.add("rows of the truth are repeated", [f"{query},{reference}"] if reference in own else [])
            own.add(reference)
    notes.add("queries have a match and none in the truth; the match counts", sorted(q for q in nothing if pairs[q]))
    return pairs


def _check(connection: Connection, found: Copies, notes: Notes) -> None:
    """Raise SourceError where a figure would mean nothing; note queries that are references, pixel by pixel."""
    _check_some(sum(1 for own in found.right if len(own)))
    if not found.references:
        raise SourceError("none of the references can be read", hint="see imgsearch.ingest_failure for why")
    rows = connection.execute(
        "select q.content_id, array_agg(r.content_id) from imgsearch.content q join imgsearch.content r "
        "using (pixel_sha256) where q.content_id = any(%s) and r.content_id = any(%s) group by 1",
        [[p.content_id for p in found.queries], [p.content_id for p in found.references]],
    ).fetchall()
    equal = {query: set(references) for query, references in rows}
    if len(equal) == len(found.queries):
        raise SourceError(
            "every query is a reference, pixel by pixel: any model would find it", hint="see --queries and --references"
        )
    named = {
        query.content_id: {found.references[n].content_id for n in own.tolist()}
        for query, own in zip(found.queries, found.right, strict=True)
    }
    paths = {picture.content_id: picture.path for picture in found.queries}
    told = {query for query, references in equal.items() if references <= named[query]}
    notes.add("queries equal their reference, pixel by pixel: any model finds them", (paths[q] for q in sorted(told)))
    notes.add("queries equal a reference that the truth does not give them",
              (paths[q] for q in sorted(equal.keys() - told)))  # fmt: skip


def _check_some(matched: int) -> None:
    if not matched:
        raise SourceError(
            "no query has a match, so there is nothing to find", hint="see --truth and --limit-references"
        )


def _whitened(dim: int, queries: Vectors, references: Vectors, background: Vectors) -> tuple[Vectors, ...]:
    """All of them reduced and whitened as the background is."""
    if queries.storage == "bit":
        raise ModelError("the bits of a hash cannot be whitened", hint="leave --whiten out, or that model")
    if dim >= queries.rows.shape[1]:
        raise ModelError(
            f"cannot whiten {queries.rows.shape[1]} dimensions to {dim}",
            hint=f"take --whiten {queries.rows.shape[1] // 2}, or less",
        )
    known = background.rows[background.present]
    if len(known) < 2 * dim:
        raise ModelError(
            f"{len(known)} background pictures are too few to whiten to {dim} dimensions",
            hint=f"take --whiten {max(1, len(known) // 2)}, or more pictures",
        )
    fitted = reduction.fit(known, dim, "whiten")
    return tuple(
        Vectors(unit(fitted.apply(part.rows)), part.present, part.storage) for part in (queries, references, background)
    )


def _commonness(queries: Vectors, background: Vectors, nearest: int | None) -> NDArray[np.float32]:
    """(q,) the mean similarity with the nearest of the background: what is like everything is a copy of nothing."""
    if nearest is None:
        return np.zeros(len(queries.rows), np.float32)
    none: Right = [np.empty(0, np.int64)] * len(queries.rows)
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
    measures = {f"r@{k}": metrics.mean(metrics.hits(ranked, k)) for k in (1, 3)}
    best, worst = examples.choose(
        ranked, 1 / ranked.first, examples.shown(found.queries), examples.shown(found.references), found.right
    )
    curves = {
        "precision over recall": Curve(*predictions.curve()),
        "recall over k": metrics.over_k(metrics.hits, ranked, min(DEEPEST, len(found.references))),
        "recall over threshold": Curve(predictions.score, predictions.curve()[0]),
        "precision over threshold": Curve(predictions.score, predictions.curve()[1]),
    }
    all_of_them = measures | {"micro-ap": predictions.micro_ap, "r@p90": predictions.recall_at_precision}
    return Outcome(all_of_them, len(found.queries), {}, curves, best, worst)
