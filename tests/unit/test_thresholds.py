"""Thresholds from numbers: what is promised holds for the counts it was made of, and too little is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgimgsearch.duplicates.thresholds import Negatives, recalls, threshold, upper
from pgimgsearch.errors import ModelError

NUMBERS = st.lists(st.floats(0, 1), min_size=1, max_size=200)


@given(NUMBERS, NUMBERS, st.integers(100, 100_000), st.floats(0.01, 1), st.floats(0.1, 0.99), st.floats(0.01, 1))
def test_a_promise_holds_for_the_counts_it_was_made_of(
    copies_of: list[float], others: list[float], images: int, copies: float, precision: float, seen: float
) -> None:
    positives = {"edit": np.array(copies_of)}
    negatives = Negatives(images, seen, np.array(others), 0.0, 0)
    try:
        found = threshold(positives, negatives, copies, precision)
    except ModelError:
        return
    true_pairs = copies * images * np.mean(np.array(copies_of) >= found.value)
    above = sum(similarity >= found.value for similarity in others)
    assert found.false_pairs == pytest.approx(above / seen)
    assert found.false_pairs_at_most >= found.false_pairs
    assert true_pairs / (true_pairs + found.false_pairs_at_most) >= precision - 1e-9
    assert recalls(positives, found.value) == {"edit": pytest.approx(found.recall)}


def test_the_limit_is_that_of_a_poisson_count() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    counts = np.array([0, 1, 3, 10, 100, 1000])
    exact = scipy_stats.chi2.ppf(0.95, 2 * (counts + 1)) / 2
    np.testing.assert_allclose(upper(counts), exact, rtol=0.01)


def test_the_lowest_threshold_that_keeps_the_promise_is_taken() -> None:
    positives = {"small": np.linspace(0.6, 1, 1000)}
    negatives = Negatives(10_000, 1.0, np.linspace(0.3, 0.8, 2000), 0.0, 0)
    found = threshold(positives, negatives, copies=0.1, precision=0.95)
    one_less = found.value - 1 / 4000
    true_pairs = 1000 * np.mean(positives["small"] >= one_less)
    at_most = upper(negatives.counts(np.array([one_less])))[0]
    assert true_pairs / (true_pairs + at_most) < 0.95
    lenient = threshold(positives, negatives, copies=0.1, precision=0.8)
    assert lenient.value < found.value
    assert threshold(positives, negatives, copies=0.01, precision=0.8).value > lenient.value


def test_too_few_images_and_models_that_cannot_tell_are_refused() -> None:
    good = {"small": np.full(50, 0.99)}
    none_alike = Negatives(100, 1.0, np.array([0.5]), 0.0, 0)
    with pytest.raises(ModelError, match=r"100 images are too few .* about 5[67]\d are needed") as raised:
        threshold(good, none_alike, copies=0.1, precision=0.95)
    assert "--precision 0.7" in str(raised.value.hint)
    enough = Negatives(600, 1.0, np.array([0.5]), 0.0, 0)
    assert threshold(good, enough, copies=0.1, precision=0.95).precision >= 0.95
    alike = Negatives(10_000, 1.0, np.full(3000, 1.0), 0.0, 0)
    with pytest.raises(ModelError, match="as similar as copies are"):
        threshold(good, alike, copies=0.1, precision=0.95)


def test_below_what_was_kept_nothing_is_promised() -> None:
    """Only pairs down to 0.7 were kept, so a lower threshold might let in any number."""
    positives = {"small": np.full(50, 0.6)}
    kept = Negatives(100_000, 1.0, np.linspace(0.7, 0.71, 5), 0.7, 0)
    with pytest.raises(ModelError):
        threshold(positives, kept, copies=0.1, precision=0.5)
