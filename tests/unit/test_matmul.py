"""The highest products of each row, against all of them sorted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgimgsearch.embeddings import matmul
from pgimgsearch.embeddings.matmul import Highest


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_the_highest_of_each_row_are_kept(seed: int, most: int, parts: int, often: bool) -> None:
    rng = np.random.default_rng(seed)
    products = rng.integers(0, 4, (12, 12)).astype(np.float32)  # few values: many are equal
    rows, columns = np.nonzero(products >= 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "A_MILLION", 0 if often else matmul.A_MILLION)
        highest = Highest(most)
        for part in np.array_split(rng.permutation(len(rows)), parts):
            highest.add(rows[part], columns[part], products[rows[part], columns[part]])
        kept = list(zip(*(values.tolist() for values in highest.result()), strict=True))
    expected = []
    for row in range(12):
        mine = [(row, column, float(products[row, column])) for column in range(row) if products[row, column] >= 1]
        expected += sorted(mine, key=lambda found: (-found[2], found[1]))[:most]
    assert kept == expected
