"""Images that ask for images: of the same thing (instances), or of the same kind (classes)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pgimgsearch.database.models import StoredModel
from pgimgsearch.errors import SourceError
from pgimgsearch.evaluation import examples, metrics
from pgimgsearch.evaluation import images as pictures
from pgimgsearch.evaluation.context import Context, Evaluate, Outcome
from pgimgsearch.evaluation.images import StoredImage, vectors
from pgimgsearch.evaluation.ranking import Columns, Ranked, rank

DEEPEST = 50  # of the curves over k


@dataclass(frozen=True, slots=True)
class Labelled:
    """Distinct images with what they are, and the places of those that ask."""

    pictures: Sequence[StoredImage]
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
    """Find the other images of a group."""
    found = context.pictures()
    key = context.request.key
    if key == "folder":  # the whole of it: shirts/001 is not shoes/001
        parents = [Path(picture.location).parent for picture in found]
        named: list[str | None] = [None if parent == context.request.data else str(parent) for parent in parents]
    else:
        named = pictures.labels(found, key) if key else [picture.group_key for picture in found]
    labelled = _sample(context, label(context, found, named, "group"))

    def evaluate(model: StoredModel) -> Outcome:
        ranked = _rank(context, labelled, model, depth=None)
        goodness = metrics.average_precisions(ranked)
        hits = {f"r@{k}": metrics.mean(metrics.hits(ranked, k)) for k in (1, 5, 10)}
        return _outcome(labelled, ranked, goodness, "average precision", {"map": metrics.mean(goodness)} | hits)

    return evaluate


def classes(context: Context) -> Evaluate:
    """Find images of the same class, and tell the class by its neighbours."""
    found = context.pictures()
    labelled = _sample(
        context, label(context, found, pictures.labels(found, class_key(context), context.request.data), "class")
    )

    def evaluate(model: StoredModel) -> Outcome:
        ranked = _rank(context, labelled, model, depth=DEEPEST)
        own = [labelled.labels[place] for place in labelled.asking.tolist()]
        measures = {f"p@{k}": metrics.mean(metrics.precisions(ranked, k)) for k in (1, 5, 10)}
        measures["knn"] = metrics.mean(metrics.votes_right(ranked, labelled.labels, own))
        return _outcome(labelled, ranked, metrics.precisions(ranked, 10), "precision of the first ten", measures)

    return evaluate


def _sample(context: Context, labelled: Labelled) -> Labelled:
    drawn = context.drawn(len(labelled.asking), len(labelled.pictures))
    return replace(labelled, asking=labelled.asking[drawn])


def class_key(context: Context) -> str:
    """The key of the classes: as said, or the folders of a folder."""
    if context.request.key:
        return context.request.key
    if context.request.data is None or not context.request.data.is_dir():
        raise SourceError("what is a class here?", hint="say it: --key folder, a metadata key, or a pattern")
    return "folder"


def label(
    context: Context, found: Sequence[StoredImage], named: Sequence[str | None], kind: str, least: int = 2
) -> Labelled:
    """Keep images with a label; those whose label too few share are there to be found, but do not ask.

    ``least`` holds where the user does not say. Raises SourceError where every answer, or none, would be right.
    """
    notes, request = context.notes, context.request
    kinds = "classes" if kind == "class" else "groups"
    without = [picture.path for picture, name in zip(found, named, strict=True) if not name]
    if len(without) == len(found):
        raise SourceError(f"no image has a {kind}", hint="see --key: folder, a metadata key, or a pattern over paths")
    notes.add(f"images have no {kind} and are left out", without)
    kept = [(picture, name) for picture, name in zip(found, named, strict=True) if name]
    counts = Counter(name for _, name in kept)
    notes.add("classes are empty", sorted(_empty_folders(context, counts) if kind == "class" else []))
    wanted = max(request.min_images or least, least)  # fewer have nothing to find
    notes.add(
        f"{kinds} have fewer than {wanted} images, which do not ask",
        sorted(name for name, count in counts.items() if count < wanted),
    )
    if len(counts) < 2:
        raise SourceError(
            f"all images have the same {kind}, so every answer would be right", hint="evaluate over at least two"
        )
    asking = np.array([place for place, (_, name) in enumerate(kept) if counts[name] >= wanted], np.int64)
    if not len(asking):
        raise SourceError(
            f"no {kind} has {wanted} images, so there is nothing to find", hint="see --key and --min-images"
        )
    return Labelled([picture for picture, _ in kept], [name for _, name in kept], asking)


def _empty_folders(context: Context, counts: Mapping[str, int]) -> list[str]:
    """Folders below the one that is evaluated, where they are its classes, that hold nothing at all."""
    data, request = context.request.data, context.request
    if data is None or not data.is_dir() or request.key not in {None, "folder"} or request.limit or request.filter:
        return []
    return [folder.name for folder in data.iterdir() if _is_class(folder) and folder.name not in counts]


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and not any(child.is_dir() for child in folder.iterdir())


def _rank(context: Context, labelled: Labelled, model: StoredModel, depth: int | None) -> Ranked:
    there = vectors(context.connection, model, labelled.pictures)
    itself = [np.array([place]) for place in labelled.asking.tolist()]
    return rank(
        there.take(labelled.asking), there, labelled.right(), itself, keep=DEEPEST, depth=depth,
        reporter=context.reporter,
    )  # fmt: skip


def _outcome(
    labelled: Labelled, ranked: Ranked, goodness: metrics.Values, called: str, measures: dict[str, metrics.Measure]
) -> Outcome:
    answers = examples.display(labelled.pictures)
    asking = [answers[place] for place in labelled.asking.tolist()]
    best, worst = examples.choose(ranked, goodness, asking, answers, labelled.right(), called)
    deepest = min(DEEPEST, len(answers) - 1)
    curves = {
        "recall over k": metrics.over_k(metrics.hits, ranked, deepest),
        "precision over k": metrics.over_k(metrics.precisions, ranked, deepest),
    }
    return Outcome(measures, len(labelled.asking), {}, curves, best, worst)
