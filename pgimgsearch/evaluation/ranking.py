"""Exact search: where in the order of all answers the right ones come. Nothing of an index is in these figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.embeddings.similarity import similarity
from pgimgsearch.reporter import SILENT, Reporter

DECIMALS = 6  # of a similarity; beyond, products in float32 depend on the order of summation, and equal vectors differ
SCORES_AT_ONCE = 1 << 25  # 128 MB

Columns = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Vectors:
    """(n, dim) float32 of length one, and which of them there are: a hash has none of an image without detail."""

    rows: NDArray[np.float32]
    present: NDArray[np.bool_]
    storage: str = "halfvec"

    def take(self, places: Columns) -> "Vectors":
        """Some of them."""
        return Vectors(self.rows[places], self.present[places], self.storage)


@dataclass(frozen=True)
class Ranked:
    """Answers to q questions.

    ``columns`` and ``scores`` are (q, k), best first, -1 and -inf where there are no more; ``ranks`` are the places of
    the right answers of each question, from 1 and in order, as far as they were looked for; ``right`` is how many right
    answers each question has.
    """

    columns: Columns
    scores: NDArray[np.float32]
    ranks: list[Columns]
    right: Columns

    @cached_property
    def first(self) -> NDArray[np.float64]:
        """(q,) the place of the first right answer, inf where none was found."""
        return np.array([ranks[0] if len(ranks) else np.inf for ranks in self.ranks], np.float64)


def rank(
    questions: Vectors, answers: Vectors, right: Sequence[Columns], left_out: Sequence[Columns] | None = None,
    *, keep: int, depth: int | None = None, reporter: Reporter = SILENT,
) -> Ranked:  # fmt: skip
    """Rank all answers to each question by similarity.

    ``right`` and ``left_out`` name answers of each question by their place; what is left out is neither right nor
    wrong, such as the image that asks. Ties count against: of equally similar answers the wrong ones come first.
    Right answers are looked for among the first ``depth``, or among all. What has no vector is never found.
    """
    asked, there = len(questions.rows), len(answers.rows)
    depth, keep = min(depth or there, there), min(keep, there)
    columns = np.full((asked, keep), -1, np.int64)
    scores = np.full((asked, keep), -np.inf, np.float32)
    ranks: list[Columns] = []
    step = max(1, SCORES_AT_ONCE // max(there, 1))
    for start in range(0, asked, step):
        block = similarities(questions, answers, slice(start, start + step))
        for number, row in enumerate(block, start):
            if left_out is not None:
                row[left_out[number]] = -np.inf
            columns[number], scores[number] = _best(row, keep, right[number])
            ranks.append(_ranks(row, right[number], depth))
        reporter.progress(min(start + step, asked), asked)
    total = [len(own if left_out is None else np.setdiff1d(own, left_out[n])) for n, own in enumerate(right)]
    return Ranked(columns, scores, ranks, np.array(total, np.int64))


def similarities(questions: Vectors, answers: Vectors, part: slice) -> NDArray[np.float32]:
    """Of a part of the questions with all answers; -inf where one of both has no vector."""
    products = similarity(questions.rows[part] @ answers.rows.T, questions.storage)
    found = np.round(products, DECIMALS)
    found[:, ~answers.present] = -np.inf
    found[~questions.present[part]] = -np.inf
    return found


def _best(row: NDArray[np.float32], keep: int, right: Columns) -> tuple[Columns, NDArray[np.float32]]:
    """The best places of a row, and their scores."""
    found = np.arange(len(row)) if keep == len(row) else np.flatnonzero(row >= np.partition(row, -keep)[-keep])
    best = found[np.lexsort((np.isin(found, right), -row[found]))][:keep]
    return np.where(np.isneginf(row[best]), -1, best), row[best]


def _ranks(row: NDArray[np.float32], right: Columns, depth: int) -> Columns:
    own = row[right]
    least = np.partition(row, -depth)[-depth] if depth < len(row) else -np.inf
    own = np.sort(own[(own >= least) & ~np.isneginf(own)])[::-1]
    if not len(own):
        return np.empty(0, np.int64)
    near = np.sort(row[row >= own[-1]])
    as_near = len(near) - np.searchsorted(near, own, "left")  # all that are at least so similar, right or wrong
    right_as_near = len(own) - np.searchsorted(own[::-1], own, "left")
    ranks = as_near - right_as_near + np.arange(1, len(own) + 1)
    return np.asarray(ranks[ranks <= depth], np.int64)
