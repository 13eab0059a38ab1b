"""Thresholds measured on the user's own images: edited copies of a sample, against the pairs that are no copies."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database import thresholds
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.duplicates import thresholds as measure
from pgimgsearch.duplicates.calibration_data import (
    HARDEST,
    Pairs,
    are_copies,
    edited_similarities,
    hardest_pairs,
    image_locations,
    representatives,
)
from pgimgsearch.duplicates.edits import NEAR, SIMILAR, Edit
from pgimgsearch.duplicates.thresholds import Negatives, Similarities, Threshold
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import ModelError
from pgimgsearch.reporter import Reporter

CHECKED, RARE = 250, 0.02  # of the hardest pairs, whether they are copies that nobody marked; until hardly any is
LEAST_PICTURES = 20
NAMED = 5  # pairs of a refusal
SEED = 20


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What to promise, and how much to look at.

    ``precision`` is that of pairs above the threshold ``near``, if a share ``copies`` of the images has one edited
    copy; ``sample`` images are edited, and ``compared`` with all others.
    """

    precision: float = 0.9
    similar_precision: float = 0.8
    copies: float = 0.1
    sample: int = 100
    compared: int = 5000
    collection: str | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured; ``histogram`` counts all pairs in equal bins of 0 to 1, ``hardest`` are (a, b) content_ids.

    Where ``near`` is None, ``problem`` says why. ``similar`` is None where no lower threshold keeps its promise.
    """

    request: CalibrationRequest
    images: int
    edited: int
    compared: int
    near: Threshold | None
    similar: Threshold | None
    problem: ModelError | None
    positives: Similarities
    negatives: Negatives
    histogram: NDArray[np.int64]
    hardest: NDArray[np.int64]


def calibrate(
    connection: Connection, model: LoadedModel, request: CalibrationRequest, reporter: Reporter
) -> Calibration:
    """Measure the thresholds of a model on images that it has vectors of; nothing is stored.

    Raises ModelError where there is next to nothing to measure on, SourceError where no file can be read.
    """
    contents = measurable(connection, model.stored, request.collection)
    order = np.random.default_rng(SEED).permutation(len(contents))
    positives = edited_similarities(connection, model, contents[order].tolist(), request.sample, reporter)
    sample = contents[order[: request.compared]]
    pairs, similarities, histogram = hardest_pairs(connection, model.stored, contents, sample)
    copies = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), CHECKED):  # on and on, while there are any
        copies[start : start + CHECKED] = are_copies(connection, pairs[start : start + CHECKED])
        if copies[start : start + CHECKED].mean() < RARE:
            break
    negatives = Negatives(
        images=len(contents),
        seen=1 - (1 - len(sample) / len(contents)) ** 2,
        hardest=similarities[~copies],
        floor=float(similarities[-1]) if len(similarities) == HARDEST else 0.0,
        copies=int(copies.sum()),
    )
    near, similar, problem = None, None, None
    try:
        near = measure.threshold(_of(positives, NEAR), negatives, request.copies, request.precision)
        similar = measure.threshold(
            _of(positives, NEAR + SIMILAR), negatives, request.copies, request.similar_precision
        )
    except ModelError as error:  # where only the second cannot be promised, there is none
        problem = None if near else error
        if isinstance(problem, measure.Indistinct):
            problem.hint = _to_judge(connection, model.stored, pairs[~copies], negatives.hardest, request.collection)
    if near is not None and similar is not None and similar.value >= near.value:
        similar = None
    return Calibration(
        request, len(contents), len(next(iter(positives.values()))), len(sample), near, similar, problem, positives,
        negatives, histogram, pairs[~copies],
    )  # fmt: skip


def measurable(connection: Connection, model: StoredModel, collection: str | None) -> NDArray[np.int64]:
    """The contents to measure on; raises ModelError for too few."""
    contents = representatives(connection, model, collection)
    if len(contents) < LEAST_PICTURES:
        raise ModelError(
            f"{model.name} has vectors of {len(contents)} different images: too few to measure a threshold",
            hint=f"ingest more: pgimgsearch ingest DIR --model {model.name}",
        )
    return contents


def store(connection: Connection, model: StoredModel, found: Calibration, *, default: bool = True) -> None:
    """Store the thresholds for the collection that they were measured on, ``default`` as the model's own too.

    Raises the problem where there are none.
    """
    if found.near is None:
        raise found.problem or ModelError
    thresholds.store_calibration(
        connection, model, found.near.value, found.similar.value if found.similar else None, found.request.precision,
        found.request.copies, found.images, summary(found), collection=found.request.collection, default=default,
    )  # fmt: skip


def _to_judge(
    connection: Connection, model: StoredModel, pairs: Pairs, similarities: NDArray[np.float64], collection: str | None
) -> str:
    """Copies that nobody marked look like different images: which pairs to judge, and how."""
    if not len(pairs):
        return "take a model made for copies, such as sscd-disc-mixup"
    shown = pairs[:NAMED].tolist()
    images = image_locations(connection, sorted({content for pair in shown for content in pair}))
    named = ", ".join(f"{images[a][0]} {images[b][0]}" for a, b in shown if a in images and b in images)
    least = float(similarities[: 4 * NAMED].min())
    where = f" --collection {quote(collection)}" if collection else ""
    return (
        f"judge the most similar pairs, of which some may be copies that nobody marked ({named}): pgimgsearch "
        f"duplicates review --model {model.name} --above {np.floor(least * 1e4) / 1e4:.4g}{where}; or take a model "
        "made for copies, such as sscd-disc-mixup"
    )


def summary(found: Calibration) -> dict[str, Any]:
    """The figures of a calibration, ready for JSON."""
    kinds = {"near": found.near, "similar": found.similar}
    return {
        **{kind: threshold and asdict(threshold) for kind, threshold in kinds.items()},
        "edited": found.edited, "compared": found.compared,
        "similar_precision": found.request.similar_precision,
        "copies_left_out": found.negatives.copies,
        "recall": {
            kind: measure.recalls(found.positives, threshold.value) for kind, threshold in kinds.items() if threshold
        },
    }  # fmt: skip


def _of(positives: Similarities, edits: Sequence[Edit]) -> Similarities:
    return {edit.name: positives[edit.name] for edit in edits}
