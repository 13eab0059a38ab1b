"""Duplicates over known pairs: what a threshold finds, and how many of them there are.

Pairs are counted, as imagededup's evaluation and record linkage do; a group of three that is known by two pairs has a
third that counts as false, so groups are given as groups.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from pgimgsearch.database.models import StoredModel
from pgimgsearch.errors import ModelError, SourceError, UsageError
from pgimgsearch.evaluation import examples
from pgimgsearch.evaluation.context import Context, Evaluate, Example, Outcome
from pgimgsearch.evaluation.images import StoredImage, vectors
from pgimgsearch.evaluation.metrics import MARGIN, Curve, Predictions, Values, worst_order
from pgimgsearch.evaluation.path_matching import Names
from pgimgsearch.evaluation.ranking import SCORES_AT_ONCE, Columns, Vectors, similarities
from pgimgsearch.evaluation.warnings import Warnings
from pgimgsearch.sources.rows import read_text

MOST = 200_000  # pairs held below the threshold, for the curves
HEADER = {"path", "path_a", "path_b", "image", "image_a", "image_b", "a", "b", "file", "group"}

Pair = tuple[int, int]  # places, the lower first


def duplicates(context: Context) -> Evaluate:
    """Find the known pairs, and no others."""
    if context.request.truth is None:
        raise UsageError("which pairs are known?", hint="--truth FILE: CSV of two paths a row, or of path and group")
    named = read_pairs(context.request.truth, context.notes)
    everything = context.images()
    images = context.chosen(everything)[: context.request.limit]
    for model in context.models:
        if model.near is None:
            raise ModelError(
                f"{model.name} has no threshold", hint=f"measure it: pgimgsearch models calibrate {model.name}"
            )
    known = context.settle(images)
    place = {picture.content_id: number for number, picture in enumerate(known)}
    true = _placed(named, everything, place, context.notes)

    def evaluate(model: StoredModel) -> Outcome:
        near = float(model.near or 0)
        a, b, scores = _all_pairs(vectors(context.connection, model, known), near, context)
        right = np.fromiter((pair in true for pair in zip(a.tolist(), b.tolist(), strict=True)), bool, len(a))
        expected = np.bincount([first for first, _ in true], minlength=len(known)).astype(np.float64)
        found = Predictions.sorted(a, scores, right, expected)
        return _outcome(found, b[worst_order(scores, right)], known, true, near)

    return evaluate


def read_pairs(path: Path, notes: Warnings) -> list[tuple[str, str]]:
    """Rows of two paths, or of a path and its group under that header, of which all pairs are meant."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(read_text(path)))]
    rows = [row for row in rows if any(row)]
    if not rows:
        raise SourceError(f"{path} has no rows", hint="two paths a row, or path,group with that header")
    if any(len(row) < 2 or not row[0] or not row[1] for row in rows):
        raise SourceError(
            f"{path} has rows without two columns", hint="two paths a row, or path,group with that header"
        )
    first = [cell.lower() for cell in rows[0][:2]]
    if set(first) <= HEADER:
        rows = rows[1:]
    if first[1] != "group":
        named = [(a, b) for a, b, *_ in rows]
    else:
        groups: dict[str, list[str]] = {}
        for member, group, *_ in rows:
            groups.setdefault(group, []).append(member)
        notes.add("groups have one image, so no pair", (group for group, members in groups.items() if len(members) < 2))
        named = [pair for members in groups.values() for pair in combinations(members, 2)]
    notes.add("pairs name an image twice", (a for a, b in named if a == b))
    return [(a, b) for a, b in named if a != b]


def _placed(
    named: Sequence[tuple[str, str]], images: Sequence[StoredImage], place: Mapping[int, int], notes: Warnings
) -> set[Pair]:
    by_location = {picture.location: picture for picture in images}
    names = Names(by_location)
    found: set[tuple[str, str]] = set()
    missing: dict[str, None] = {}
    for pair in named:
        files = [names.find(name) for name in pair]
        known = sorted(file for file in files if file is not None)
        missing |= {name: None for name, file in zip(pair, files, strict=True) if file is None}
        if len(known) < 2:
            continue
        one, other = known
        notes.add("pairs name an image twice", [one] if one == other else [])
        notes.add("pairs are given twice", [" and ".join(pair)] if (one, other) in found else [])
        found |= {(one, other)} if one != other else set()
    notes.add("images of the truth are not there; their pairs are left out", missing)
    left_out: dict[str, None] = {}
    placed: set[Pair] = set()
    for one, other in sorted(found):
        a, b = place.get(by_location[one].content_id), place.get(by_location[other].content_id)
        left_out |= {file: None for file, at in ((one, a), (other, b)) if at is None}
        if a is not None and b is not None:
            notes.add(
                "known pairs have the same bytes, so no model is needed, and do not count", [one] if a == b else []
            )
            placed |= {(min(a, b), max(a, b))} if a != b else set()
    notes.add("images of the truth are not among those compared; their pairs are left out", left_out)
    if not placed:
        raise SourceError("the truth has no pair of different images that are there", hint="name them by their paths")
    return placed


def _all_pairs(there: Vectors, near: float, context: Context) -> tuple[Columns, Columns, Values]:
    """Places and similarities of all pairs down to the threshold, and below it the most similar."""
    count = len(there.rows)
    step = max(1, SCORES_AT_ONCE // max(count, 1))
    a, b, kept, cut = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), -1.0
    for start in range(0, count, step):
        block = similarities(there, there, slice(start, start + step))
        rows, columns = np.nonzero(block > cut)
        above = columns > rows + start  # each pair once
        rows, columns = rows[above], columns[above]
        a, b = np.append(a, rows + start), np.append(b, columns)
        kept = np.append(kept, block[rows, columns])
        if len(kept) > MOST:
            cut = min(float(np.partition(kept, -MOST)[-MOST]), near - 2 * MARGIN)
            best = kept > cut
            a, b, kept = a[best], b[best], kept[best]
        context.reporter.progress(min(start + step, count), count)
    return a, b, kept


def _outcome(
    found: Predictions, others: Columns, known: Sequence[StoredImage], true: set[Pair], near: float
) -> Outcome:
    taken = found.at(near)
    best = found.best_threshold() if len(found.score) else near
    recall, precision = found.curve()
    measures = {
        "precision": taken.precision, "recall": taken.recall, "f1": taken.f1,
        "ap": found.micro_ap, "best-f1": found.at(best).f1,
    }  # fmt: skip
    curves = {
        "precision over recall": Curve(recall, precision),
        "precision over threshold": Curve(found.score, precision),
        "recall over threshold": Curve(found.score, recall),
    }
    count = int(taken.taken.sum())
    numbers = {"threshold": near, "best-threshold": best, "reported-pairs": float(count)}
    alike, wrong = _examples(found, others, known, true, count)
    return Outcome(measures, len(known), numbers, curves, alike, wrong)


def _examples(
    found: Predictions, others: Columns, known: Sequence[StoredImage], true: set[Pair], count: int
) -> tuple[list[Example], list[Example]]:
    """Known pairs that are found; and pairs that are called so and are none, and known ones that are not found."""
    shown = examples.display(known)
    half = examples.SHOWN // 2

    def told(numbers: Columns, said: str) -> list[Example]:
        return [
            Example(
                shown[found.question[n]], said, [(shown[others[n]], float(found.score[n]), bool(found.right[n]))], []
            )
            for n in numbers
        ]

    alike = told(found.hits[found.hits < count][: examples.SHOWN], "a known pair")
    false = told(np.flatnonzero(~found.right[:count])[:half], "no known pair")
    hits = found.hits[found.hits < count]
    hidden = sorted(true - set(zip(found.question[hits].tolist(), others[hits].tolist(), strict=True)))[:half]
    return alike, [*false, *(Example(shown[a], "a known pair, not found", [], [shown[b]]) for a, b in hidden)]
