"""Figures of retrieval. Each is a function of how often every question counts, so that it can be resampled.

Questions are weighed by (q,) float64; all ones is the figure itself, and draws with replacement give its interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.evaluation.ranking import Ranked

Weights = NDArray[np.float64]
Measure = Callable[[Weights], float]
Values = NDArray[np.float64]

MARGIN = 6e-7  # half of the last decimal of a similarity, and what single precision takes of a threshold
KNN, TEMPERATURE = 20, 0.07  # Wu et al. 2018, and DINO (Caron et al. 2021), section 4.1


def mean(values: Values) -> Measure:
    """The mean of a value a question; questions whose value is not a number do not count."""
    counts = ~np.isnan(values)
    known = np.where(counts, values, 0)

    def measure(weights: Weights) -> float:
        total = float(weights @ counts)
        return float(weights @ known) / total if total else float("nan")

    return measure


def hits(ranked: Ranked, k: int) -> Values:
    """Recall@k as retrieval papers count it: 1 where a right answer is among the first k, else 0."""
    return np.where(ranked.right > 0, ranked.first <= k, np.nan)


def precisions(ranked: Ranked, k: int) -> Values:
    """Precision@k: the share of right answers among the first k."""
    found = np.array([(ranks <= k).sum() / k for ranks in ranked.ranks], np.float64)
    return np.where(ranked.right > 0, found, np.nan)


def average_precisions(ranked: Ranked) -> Values:
    """Average precision: the mean of the precision at each right answer, 0 for those that are never found."""
    found = [
        float((np.arange(1, len(ranks) + 1) / ranks).sum()) / total if total else np.nan
        for ranks, total in zip(ranked.ranks, ranked.right.tolist(), strict=True)
    ]
    return np.array(found, np.float64)


def votes_right(ranked: Ranked, labels: Sequence[str], own: Sequence[str]) -> Values:
    """kNN accuracy: 1 where the answers' labels, weighed by exp(similarity / 0.07), give the question its own label."""
    right = np.zeros(len(own))
    for number, (columns, scores) in enumerate(zip(ranked.columns, ranked.scores, strict=True)):
        votes: dict[str, float] = {}
        for column, score in zip(columns[:KNN].tolist(), scores[:KNN].tolist(), strict=True):
            if column >= 0:
                votes[labels[column]] = votes.get(labels[column], 0.0) + float(np.exp(score / TEMPERATURE))
        best = max(votes.values(), default=0.0)
        winners = [label for label, vote in votes.items() if vote == best]
        right[number] = winners == [own[number]]
    return right


@dataclass(frozen=True, slots=True)
class Curve:
    """Points to draw: (n,) and (n,)."""

    x: Values
    y: Values


def over_k(values: Callable[[Ranked, int], Values], ranked: Ranked, deepest: int) -> Curve:
    """The mean of a value at k over the questions, for k from 1 on."""
    ks = range(1, deepest + 1)
    return Curve(np.array(ks, np.float64), np.array([np.nanmean(values(ranked, k)) for k in ks]))


def worst_order(score: Values, right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Places by falling score, of equal ones the wrong first."""
    return np.lexsort((right, -score)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Pairs that a model holds for true, over all questions, best first and of equal scores the wrong ones first.

    ``question`` (n,) is who predicts, ``right`` (n,) whether it is so, ``expected`` (q,) how many true pairs each
    question has, predicted or not; ``hits`` are the places of the right ones.
    """

    question: NDArray[np.int64]
    score: Values
    right: NDArray[np.bool_]
    expected: Values
    hits: NDArray[np.int64]

    @classmethod
    def sorted(
        cls, question: NDArray[np.int64], score: Values, right: NDArray[np.bool_], expected: Values
    ) -> "Predictions":
        """Put predictions in order."""
        order = worst_order(score, right)
        return cls(question[order], score[order], right[order], expected, np.flatnonzero(right[order]))

    def curve(self) -> tuple[Values, Values]:
        """(n,) recall and (n,) precision of the first 1, 2, ... n predictions."""
        right = np.cumsum(self.right)
        with np.errstate(invalid="ignore"):
            return right / self.expected.sum(), right / np.arange(1, len(right) + 1)

    def micro_ap(self, weights: Weights) -> float:
        """Average precision over all predictions of all questions at once (Douze et al. 2021, section 4)."""
        own, _, precision = self._at_hits(weights)
        expected = float(weights @ self.expected)
        return float(own @ precision) / expected if expected else float("nan")

    def recall_at_precision(self, weights: Weights, least: float = 0.9) -> float:
        """The highest recall that some threshold reaches with at least this precision; 0 where none does."""
        _, found, precision = self._at_hits(weights)
        expected = float(weights @ self.expected)
        return float(found[precision >= least].max(initial=0.0)) / expected if expected else float("nan")

    def at(self, threshold: float) -> "AtThreshold":
        """Predictions that reach a threshold, but for what rounding takes."""
        count = int((self.score >= threshold - MARGIN).sum())
        taken, questions = self.question[:count], len(self.expected)
        right = np.bincount(taken[self.right[:count]], minlength=questions).astype(np.float64)
        return AtThreshold(np.bincount(taken, minlength=questions).astype(np.float64), right, self.expected)

    def best_threshold(self) -> float:
        """The score from which on F1 is highest; of equally good ones the highest."""
        recall, precision = self.curve()
        last = np.append(np.diff(self.score) != 0, True)  # a threshold takes all of equal scores
        f1 = np.where(last, harmonic(precision, recall), -1.0)
        return float(self.score[int(f1.argmax())])

    def _at_hits(self, weights: Weights) -> tuple[Values, Values, Values]:
        """At each right prediction its weight, the right ones so far and the precision; wrong ones raise no figure."""
        so_far = np.cumsum(weights[self.question])[self.hits]
        own = weights[self.question[self.hits]]
        found = np.cumsum(own)
        return own, found, np.divide(found, so_far, out=np.zeros(len(own)), where=so_far > 0)


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What is taken for true at a threshold: (q,) how many of each question, how many of them right, and expected."""

    taken: Values
    right: Values
    expected: Values

    def precision(self, weights: Weights) -> float:
        """The share of right ones; not a number without any."""
        return _share(float(weights @ self.right), float(weights @ self.taken))

    def recall(self, weights: Weights) -> float:
        """The share of true pairs that are among them."""
        return _share(float(weights @ self.right), float(weights @ self.expected))

    def f1(self, weights: Weights) -> float:
        """The harmonic mean of both."""
        return _share(2 * float(weights @ self.right), float(weights @ (self.taken + self.expected)))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def harmonic(a: Values, b: Values) -> Values:
    """The harmonic mean, 0 where both are."""
    return np.asarray(np.divide(2 * a * b, a + b, out=np.zeros(np.shape(a)), where=(a + b) > 0))
