"""Duplicates over known pairs: what a threshold finds, and how many of them there are.

Pairs are counted, as imagededup's evaluation and record linkage do; a group of three that is known by two pairs has a
third that counts as false, so groups are given as groups.
"""

import csv
import io
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import ModelError, SourceError, UsageError
from pgimgsearch.evaluation import examples, pictures
from pgimgsearch.evaluation.context import Context, Evaluate, Example, Outcome
from pgimgsearch.evaluation.metrics import Curve, Predictions
from pgimgsearch.evaluation.names import Names
from pgimgsearch.evaluation.notes import Notes
from pgimgsearch.evaluation.pictures import Picture
from pgimgsearch.evaluation.ranking import SCORES_AT_ONCE, Vectors, similarities
from pgimgsearch.pipeline.rows import read_text

MOST = 2_000_000  # pairs held below the threshold, for the curves
HEADER = {"path", "path_a", "path_b", "image", "image_a", "image_b", "a", "b", "file", "group"}

Pair = tuple[int, int]  # places, the lower first; twice the same where files have equal bytes


def duplicates(context: Context) -> Evaluate:
    """Find the known pairs, and no others."""
    if context.wish.truth is None:
        raise UsageError("which pairs are known?", hint="--truth FILE: CSV of two paths a row, or of path and group")
    named = read_pairs(context.wish.truth, context.notes)
    images = context.images()
    known = context.settle(images)
    place = {picture.content_id: number for number, picture in enumerate(known)}
    true = _placed(named, images, place, context.notes)
    equal = _equal_bytes(images, place)

    def evaluate(model: StoredModel) -> Outcome:
        near = model.near
        if near is None:
            raise ModelError(
                f"{model.name} has no threshold", hint=f"measure it: pgimgsearch models calibrate {model.name}"
            )
        a, b, scores = _all_pairs(pictures.vectors(context.connection, model, known), near, context)
        a, b = np.append(a, equal), np.append(b, equal)
        scores = np.append(scores, np.ones(len(equal)))
        right = np.fromiter((pair in true for pair in zip(a.tolist(), b.tolist(), strict=True)), bool, len(a))
        expected = np.zeros(len(known))
        for first, _ in true:
            expected[first] += 1
        order = np.lexsort((right, -scores))
        found = Predictions(a[order], scores[order], right[order], expected)
        return _outcome(known, found, b[order], true, near)

    return evaluate


def read_pairs(path: Path, notes: Notes) -> list[tuple[str, str]]:
    """Rows of two paths, or of a path and its group under that header, of which all pairs are meant."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(read_text(path).removeprefix("\ufeff")))]
    rows = [row for row in rows if any(row)]
    if any(len(row) < 2 or not row[0] or not row[1] for row in rows) or not rows:
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
        notes.add(
            "groups have one picture, so no pair", (group for group, members in groups.items() if len(members) < 2)
        )
        named = [pair for members in groups.values() for pair in combinations(members, 2)]
    notes.add("pairs name a picture twice", (a for a, b in named if a == b))
    return [(a, b) for a, b in named if a != b]


def _placed(
    named: Sequence[tuple[str, str]], images: Sequence[Picture], place: dict[int, int], notes: Notes
) -> set[Pair]:
    names = Names(picture.path for picture in images)
    found: set[Pair] = set()
    repeated: list[str] = []
    missing: dict[str, None] = {}
    for pair in named:
        at = [names.find(name) for name in pair]
        missing |= {name: None for name, number in zip(pair, at, strict=True) if number is None}
        contents = [images[number].content_id for number in at if number is not None]
        if len(contents) < 2 or not all(content in place for content in contents):
            continue
        placed = min(place[c] for c in contents), max(place[c] for c in contents)
        repeated += [" and ".join(pair)] if placed in found else []
        found.add(placed)
    notes.add("pictures of the truth are not there; their pairs are left out", missing)
    notes.add("pairs are given twice", repeated)
    if not found:
        raise SourceError("the truth has no pair of pictures that are there", hint="name pictures by path or file name")
    return found


def _equal_bytes(images: Sequence[Picture], place: dict[int, int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Places of contents that several files have: pairs by themselves, whatever the model."""
    seen: dict[int, int] = {}
    for picture in images:
        seen[picture.content_id] = seen.get(picture.content_id, 0) + 1
    return np.array([place[content] for content, count in seen.items() if count > 1 and content in place], np.int64)


def _all_pairs(there: Vectors, near: float, context: Context) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
            cut = min(float(np.partition(kept, -MOST)[-MOST]), np.nextafter(near, -1))
            best = kept > cut
            a, b, kept = a[best], b[best], kept[best]
        context.progress(min(start + step, count), count)
    return a, b, kept


def _outcome(known: Sequence[Picture], found: Predictions, others: np.ndarray, true: set[Pair], near: float) -> Outcome:
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
    shown = examples.shown(known)
    pairs = list(zip(found.question.tolist(), others.tolist(), found.score.tolist(), found.right.tolist(), strict=True))
    alike = [Example(shown[a], "a known pair", [(shown[b], s, True)], []) for a, b, s, right in pairs if right]
    false = [
        Example(shown[a], "no known pair", [(shown[b], s, False)], [])
        for a, b, s, right in pairs[: taken.count]
        if not right
    ]
    hidden = true - {(a, b) for a, b, _, _ in pairs[: taken.count]}
    missed = [Example(shown[a], "a known pair, not found", [], [shown[b]]) for a, b in sorted(hidden)]
    half = examples.SHOWN // 2
    return Outcome(
        measures, len(known), {"threshold": near, "best-threshold": best, "pairs": float(taken.count)}, curves,
        alike[: examples.SHOWN], [*false[:half], *missed[:half]],
    )  # fmt: skip
