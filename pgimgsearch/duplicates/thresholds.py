"""Thresholds from similarities: of edited copies, and of pairs that are no copies. Pure functions of numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.errors import ModelError

STEPS = 4000  # thresholds that are tried between 0 and 1


class Indistinct(ModelError):  # noqa: N818  (a finding)
    """Images that are no copies are as similar as copies are."""


Similarities = Mapping[str, NDArray[np.float64]]  # by edit; -1 where the model could not read the copy


@dataclass(frozen=True, slots=True)
class Negatives:
    """Pairs of different images of a collection of ``images``, of which each was seen with the chance ``seen``.

    ``hardest`` are the similarities of the most similar ones, complete down to ``floor``; pairs that were found to be
    copies are not among them, and counted in ``copies``.
    """

    images: int
    seen: float
    hardest: NDArray[np.float64]
    floor: float
    copies: int

    def counts(self, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Pairs seen at each threshold or above."""
        ascending = np.sort(self.hardest)
        return len(ascending) - np.searchsorted(ascending, thresholds, side="left")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold, the recall by edit, and the false pairs expected in the collection: likely, and at most (95%)."""

    value: float
    recall: float
    false_pairs: float
    false_pairs_at_most: float
    precision: float


def threshold(positives: Similarities, negatives: Negatives, copies: float, precision: float) -> Threshold:
    """The lowest threshold at which pairs are copies with at least ``precision``, if a share ``copies`` of the images
    has one edited copy; with the upper bound of the false pairs, so that a small sample promises little.

    Raises ModelError where no threshold reaches it, saying whether images or the model fall short.
    """
    tried = np.linspace(0, 1, STEPS + 1)
    tried = tried[tried > negatives.floor]  # of pairs at the floor some may have been left out
    counts = negatives.counts(tried)
    at_most = upper(counts) / negatives.seen
    recall = np.mean([(similarities[:, None] >= tried).mean(axis=0) for similarities in positives.values()], axis=0)
    true_pairs = copies * negatives.images * recall
    reached = true_pairs / (true_pairs + at_most)
    good = np.nonzero(reached >= precision)[0]
    if not len(good):
        raise _short(negatives, float(recall[counts == 0].max(initial=0)), copies, precision, float(reached.max()))
    at = good[0]
    return Threshold(
        float(tried[at]), float(recall[at]), float(counts[at] / negatives.seen), float(at_most[at]), float(reached[at])
    )


def recalls(positives: Similarities, value: float) -> dict[str, float]:
    """The share of copies at a threshold or above, by edit."""
    return {edit: float((similarities >= value).mean()) for edit, similarities in positives.items()}


def upper(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean that a Poisson count exceeds in 95 of 100 cases (Byar's approximation of the exact limit)."""
    next_one = counts + 1.0
    return np.asarray(next_one * (1 - 1 / (9 * next_one) + 1.6449 / (3 * np.sqrt(next_one))) ** 3)


def _short(negatives: Negatives, recall: float, copies: float, precision: float, best: float) -> ModelError:
    """Too few images for any threshold, or a model that cannot tell copies from others."""
    none_seen = float(upper(np.zeros(1, np.int64))[0]) / negatives.seen
    needed = none_seen * precision / (1 - precision) / copies / max(recall, 1e-9)
    whole = negatives.seen == 1
    if recall > 0.1 and needed > negatives.images:
        return ModelError(
            f"{negatives.images} images are too few to promise a precision of {precision}: without any false pair in "
            f"sight it could still be {best:.3f}; about {needed:.0f} are needed",
            hint=f"promise less: --precision {np.floor(best * 100) / 100:.2f}"
            + ("" if whole else "; or look at more pairs: --compared"),
        )
    return Indistinct(
        f"at no threshold are the pairs copies with a precision of {precision}: the best is {best:.3f}, as images "
        "that are no copies are as similar as copies are"
    )
