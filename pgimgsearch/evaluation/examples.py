"""The questions that went best and worst, as a person wants to see them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.evaluation.context import Display, Example
from pgimgsearch.evaluation.images import StoredImage
from pgimgsearch.evaluation.ranking import Columns, Ranked

SHOWN, ANSWERS, MISSED = 6, 6, 2


def display(pictures: Sequence[StoredImage]) -> list[Display]:
    """Images by their paths."""
    return [Display(picture.path, picture.location) for picture in pictures]


def choose(
    ranked: Ranked, goodness: NDArray[np.float64], questions: Sequence[Display], answers: Sequence[Display],
    right: Sequence[Columns], called: str = "",
) -> tuple[list[Example], list[Example]]:  # fmt: skip
    """The best and the worst questions by their (q,) goodness; of equally good ones by how sure the first answer is.

    ``called`` is the name of the goodness, where it is more than the place of the first right answer.
    """
    sure = ranked.scores[:, 0] if ranked.scores.shape[1] else np.zeros(len(goodness))
    can = np.flatnonzero(ranked.right > 0)
    best = can[np.lexsort((-sure[can], -goodness[can]))][:SHOWN]
    worst = can[np.lexsort((-sure[can], goodness[can]))][:SHOWN]

    def told(numbers: Columns) -> list[Example]:
        said = [f"{called} {goodness[n]:.2f}, " if called else "" for n in numbers]
        return [_example(ranked, int(n), questions, answers, right, how) for n, how in zip(numbers, said, strict=True)]

    return told(best[goodness[best] > 0]), told(worst[goodness[worst] < 1])


def _example(
    ranked: Ranked,
    number: int,
    questions: Sequence[Display],
    answers: Sequence[Display],
    right: Sequence[Columns],
    how: str,
) -> Example:
    own = set(right[number].tolist())
    pairs = zip(ranked.columns[number, :ANSWERS].tolist(), ranked.scores[number, :ANSWERS].tolist(), strict=True)
    told = [(answers[column], score, column in own) for column, score in pairs if column >= 0]
    among = set(ranked.columns[number, :ANSWERS].tolist())
    first = ranked.first[number]
    said = f"first right answer: {int(first)}" if np.isfinite(first) else "no right answer among those looked at"
    itself = questions[number]
    missed = [answers[c] for c in right[number].tolist() if c not in among and answers[c] != itself]
    all_right = bool(told) and all(so for _, _, so in told)
    return Example(itself, how + said, told, [] if all_right else missed[:MISSED])
