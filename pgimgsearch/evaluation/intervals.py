"""How sure a figure is: percentile bootstrap over the questions (Efron 1979)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.evaluation.metrics import Measure

DRAWS, SEED = 1000, 0
LOW, HIGH = 2.5, 97.5  # percentiles: 95 of 100 intervals made so hold the true figure


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and its 95% interval; ``draws`` are its values when questions are drawn anew."""

    value: float
    low: float
    high: float
    draws: NDArray[np.float64]

    def less(self, other: "Figure") -> tuple[float, float]:
        """The interval of the difference from another model's figure, on the same questions."""
        return percentiles(self.draws - other.draws)


def measure(measures: Mapping[str, Measure], units: NDArray[np.int64]) -> dict[str, Figure]:
    """Each figure with its interval. The same draws for every model, so that their difference has one too.

    ``units`` (q,) are drawn as wholes: five captions of one image are not five independent questions.
    """
    random = np.random.default_rng(SEED)
    count = int(units.max()) + 1
    draws = np.empty((len(measures), DRAWS))
    for number in range(DRAWS):
        weights = random.multinomial(count, np.full(count, 1 / count)).astype(np.float64)[units]
        draws[:, number] = [of(weights) for of in measures.values()]
    values = [of(np.ones(len(units))) for of in measures.values()]
    return {
        name: Figure(value, *percentiles(drawn), drawn)
        for name, value, drawn in zip(measures, values, draws, strict=True)
    }


def percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95%; not numbers where no draw is one."""
    known = draws[~np.isnan(draws)]
    low, high = np.percentile(known, [LOW, HIGH]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)
