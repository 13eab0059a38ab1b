"""Pictures that ask for pictures: of the same thing (instances), or of the same kind (classes)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import SourceError
from pgimgsearch.evaluation import examples, metrics, pictures
from pgimgsearch.evaluation.context import Context, Evaluate, Outcome
from pgimgsearch.evaluation.pictures import Picture
from pgimgsearch.evaluation.ranking import Columns, Ranked, rank

DEEPEST = 50  # of the curves over k


@dataclass(frozen=True, slots=True)
class Labelled:
    """Distinct pictures with what they are, and the places of those that ask."""

    pictures: Sequence[Picture]
    labels: Sequence[str]
    asking: Columns

    def right(self) -> list[Columns]:
        """For each that asks, the places of its own label, its own place among them."""
        places: dict[str, list[int]] = {}
        for place, label in enumerate(self.labels):
            places.setdefault(label, []).append(place)
        arrays = {label: np.array(own, np.int64) for label, own in places.items()}
        return [arrays[self.labels[place]] for place in self.asking.tolist()]


def instances(context: Context) -> Evaluate:
    """Find the other pictures of a group."""
    found = context.pictures()
    key = context.wish.key
    named = pictures.labels(found, key) if key else [picture.group_key for picture in found]
    if not any(named):
        raise SourceError(
            "no picture has a group", hint="ingest with --group-by, or say what makes a group: --key KEY, or a pattern"
        )
    labelled = label(context, found, named, "group")

    def evaluate(model: StoredModel) -> Outcome:
        ranked = _rank(context, labelled, model, depth=None)
        goodness = metrics.average_precisions(ranked)
        hits = {f"r@{k}": metrics.mean(metrics.hits(ranked, k)) for k in (1, 5, 10)}
        return _outcome(labelled, ranked, goodness, {"map": metrics.mean(goodness)} | hits)

    return evaluate


def classes(context: Context) -> Evaluate:
    """Find pictures of the same class, and tell the class by its neighbours."""
    found = context.pictures()
    labelled = label(context, found, pictures.labels(found, class_key(context)), "class")

    def evaluate(model: StoredModel) -> Outcome:
        ranked = _rank(context, labelled, model, depth=DEEPEST)
        own = [labelled.labels[place] for place in labelled.asking.tolist()]
        measures = {f"p@{k}": metrics.mean(metrics.precisions(ranked, k)) for k in (1, 5, 10)}
        measures["knn"] = metrics.mean(metrics.votes_right(ranked, labelled.labels, own))
        return _outcome(labelled, ranked, metrics.precisions(ranked, 10), measures)

    return evaluate


def class_key(context: Context) -> str:
    """The key of the classes: as said, or the folders of a folder."""
    if context.wish.key:
        return context.wish.key
    if context.wish.data is None or not context.wish.data.is_dir():
        raise SourceError("what is a class here?", hint="say it: --key folder, a metadata key, or a pattern")
    return "folder"


def label(context: Context, found: Sequence[Picture], named: Sequence[str | None], kind: str) -> Labelled:
    """Keep pictures with a label; those that are alone with theirs are there to be found, but do not ask."""
    notes, wish = context.notes, context.wish
    notes.add(
        f"pictures have no {kind} and are left out", (p.path for p, name in zip(found, named, strict=True) if not name)
    )
    kept = [(picture, name) for picture, name in zip(found, named, strict=True) if name]
    if wish.data is not None and wish.data.is_dir() and wish.key in {None, "folder"} and kind == "class":
        full = {name for _, name in kept}
        notes.add(
            "classes are empty", sorted(f.name for f in wish.data.iterdir() if _is_class(f) and f.name not in full)
        )
    counts = Counter(name for _, name in kept)
    notes.add(
        f"{'classes' if kind == 'class' else 'groups'} have fewer than {wish.least} pictures, which do not ask",
        sorted(name for name, count in counts.items() if count < wish.least),
    )
    if len(counts) < 2:
        raise SourceError(
            f"all pictures have the same {kind}, so every answer would be right", hint="evaluate over at least two"
        )
    asking = np.array([place for place, (_, name) in enumerate(kept) if counts[name] >= wish.least], np.int64)
    if not len(asking):
        raise SourceError(
            f"no {kind} has {wish.least} pictures, so there is nothing to find", hint="see --key and --least"
        )
    return Labelled([p for p, _ in kept], [name for _, name in kept], asking[context.drawn(len(asking), len(kept))])


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and not any(child.is_dir() for child in folder.iterdir())


def _rank(context: Context, labelled: Labelled, model: StoredModel, depth: int | None) -> Ranked:
    there = pictures.vectors(context.connection, model, labelled.pictures)
    itself = [np.array([place]) for place in labelled.asking.tolist()]
    return rank(
        there.take(labelled.asking), there, labelled.right(), itself, keep=DEEPEST, depth=depth,
        progress=context.progress,
    )  # fmt: skip


def _outcome(
    labelled: Labelled, ranked: Ranked, goodness: metrics.Values, measures: dict[str, metrics.Measure]
) -> Outcome:
    answers = examples.shown(labelled.pictures)
    asking = [answers[place] for place in labelled.asking.tolist()]
    best, worst = examples.choose(ranked, goodness, asking, answers, labelled.right())
    deepest = min(DEEPEST, len(answers) - 1)
    curves = {
        "recall over k": metrics.over_k(metrics.hits, ranked, deepest),
        "precision over k": metrics.over_k(metrics.precisions, ranked, deepest),
    }
    return Outcome(measures, len(labelled.asking), {}, curves, best, worst)
