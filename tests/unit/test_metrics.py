"""Figures against scikit-learn, SciPy, plain loops and cases worked by hand; never only against themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pgimgsearch.evaluation import intervals, metrics
from pgimgsearch.evaluation.metrics import Predictions
from pgimgsearch.evaluation.ranking import Ranked, Vectors, rank

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def vectors(rows: NDArray[np.floating], present: list[bool] | None = None) -> Vectors:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return Vectors(unit.astype(np.float32), np.array(present or [True] * len(rows)))


def worst_order(scores: list[float], right: list[bool]) -> list[int]:
    """Places by falling score; of equal ones the wrong first, by sorting in plain Python."""
    return sorted(range(len(scores)), key=lambda n: (-scores[n], right[n]))


# Few different directions, so that ties are everywhere.
ANSWERS = st.lists(st.sampled_from([(1, 0), (0, 1), (1, 1), (3, 4), (-1, 2)]), min_size=2, max_size=12)


@settings(deadline=None)
@given(ANSWERS, st.data())
def test_ranks_are_those_of_a_plain_sort_with_ties_against(answers: list[tuple[int, int]], data: st.DataObject) -> None:
    places = st.lists(st.integers(0, len(answers) - 1), unique=True)
    right, out = np.array(data.draw(places), np.int64), np.array(data.draw(places), np.int64)
    present = data.draw(st.lists(st.booleans(), min_size=len(answers), max_size=len(answers)))
    depth = data.draw(st.integers(1, len(answers)))
    question, there = vectors(np.array([[2.0, 1.0]])), vectors(np.array(answers, float), present)
    found = rank(question, there, [right], [out], keep=3, depth=depth)

    scores = [round(float(row.astype(float) @ question.rows[0].astype(float)), 6) for row in there.rows]
    able = [n for n in range(len(answers)) if present[n] and n not in out]
    order = [able[n] for n in worst_order([scores[n] for n in able], [n in right for n in able])]
    expected = [place for place, n in enumerate(order, 1) if n in right]
    assert found.ranks[0].tolist() == [place for place in expected if place <= depth]
    assert found.right.tolist() == [len(set(right.tolist()) - set(out.tolist()))]
    best = [scores[n] for n in order[:3]]
    assert found.scores[0][: len(best)].tolist() == pytest.approx(best, abs=1e-6)
    assert [n in right for n in found.columns[0].tolist() if n >= 0] == [n in right for n in order[:3]]


def test_a_question_without_a_vector_finds_nothing() -> None:
    there = vectors(np.eye(3))
    found = rank(vectors(np.eye(3), [False, True, True]), there, [np.array([n]) for n in range(3)], keep=2)
    assert metrics.hits(found, 1).tolist() == [0, 1, 1]
    assert metrics.average_precisions(found).tolist() == [0, 1, 1]


def test_average_precision_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    there, asking = vectors(random.normal(size=(60, 8))), vectors(random.normal(size=(20, 8)))
    right = [np.flatnonzero(random.random(60) < 0.2) for _ in range(20)]
    found = metrics.average_precisions(rank(asking, there, right, keep=5))
    for number, own in enumerate(right):
        truth = np.isin(np.arange(60), own)
        expected = sklearn_metrics.average_precision_score(truth, asking.rows[number] @ there.rows.T)
        assert found[number] == pytest.approx(expected, abs=1e-9)


def test_knn_is_that_of_scikit_learn() -> None:
    neighbours = pytest.importorskip("sklearn.neighbors")
    random = np.random.default_rng(2)
    labels = random.integers(0, 5, 300)
    rows = vectors(random.normal(size=(300, 16)) + 0.6 * np.eye(16)[labels])
    itself = [np.array([n]) for n in range(300)]
    same = [np.flatnonzero(labels == label) for label in labels]
    names = list(map(str, labels))
    found = metrics.votes_right(rank(rows, rows, same, itself, keep=20), names, names)
    for number in range(300):
        others = np.arange(300) != number
        model = neighbours.KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        model.fit(rows.rows[others], labels[others])
        assert found[number] == (model.predict(rows.rows[[number]])[0] == labels[number])


def predictions(question: list[int], score: list[float], right: list[bool], expected: list[float]) -> Predictions:
    return Predictions.sorted(np.array(question), np.array(score, float), np.array(right, bool), np.array(expected))


SOME = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), min_size=1, max_size=30)


@given(SOME, st.integers(0, 5))
def test_micro_ap_is_that_of_a_plain_loop_with_ties_against(rows: list[tuple[int, int, bool]], unseen: int) -> None:
    question, score, right = ([row[column] for row in rows] for column in range(3))
    expected = [float(sum(r for q, _, r in rows if q == number)) for number in range(4)]
    expected[0] += unseen
    found = predictions(question, list(map(float, score)), right, expected)
    total, hit, area, best = sum(expected), 0, 0.0, 0.0
    order = worst_order(list(map(float, score)), right)
    for place, n in enumerate(order, 1):
        hit += right[n]
        area += right[n] * hit / place
        last = place == len(order) or score[order[place]] != score[n]
        if last and total and hit / place >= 0.9:
            best = max(best, hit / total)
    if not total:
        assert np.isnan(found.micro_ap(np.ones(4)))
        assert np.isnan(found.recall_at_precision(np.ones(4)))
        return
    assert found.micro_ap(np.ones(4)) == pytest.approx(area / total)
    assert found.recall_at_precision(np.ones(4)) == pytest.approx(best)


def test_micro_ap_and_recall_at_precision_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    right = random.random(500) < 0.5
    score = random.normal(size=500) + 2.5 * right
    found = predictions([0] * 500, score.tolist(), right.tolist(), [float(right.sum())])
    assert found.micro_ap(np.ones(1)) == pytest.approx(sklearn_metrics.average_precision_score(right, score))
    precision, recall, _ = sklearn_metrics.precision_recall_curve(right, score)
    assert found.recall_at_precision(np.ones(1)) == pytest.approx(recall[precision >= 0.9].max())


def test_a_case_worked_by_hand() -> None:
    """Right at places 1 and 3, a tie at 2 and 3 that puts the wrong one first, and one match of four never predicted."""
    found = predictions([0, 1, 2, 3], [0.9, 0.8, 0.8, 0.1], [True, True, False, False], [1, 1, 1, 1])
    assert found.micro_ap(np.ones(4)) == pytest.approx((1 + 2 / 3) / 4)
    assert found.recall_at_precision(np.ones(4)) == 0.25
    at = found.at(0.8)
    assert (at.precision(np.ones(4)), at.recall(np.ones(4)), at.f1(np.ones(4))) == pytest.approx((2 / 3, 0.5, 4 / 7))
    assert found.best_threshold() == 0.8
    nothing = found.at(0.95)
    assert np.isnan(nothing.precision(np.ones(4)))
    assert (nothing.recall(np.ones(4)), nothing.f1(np.ones(4))) == (0, 0)


def test_a_score_at_the_threshold_reaches_it_also_when_both_are_rounded() -> None:
    """PDQ at a distance of 31 of 256 bits, and a threshold that was stored in single precision."""
    for similarity, near in ((round(1 - 31 / 256, 6), 1 - 31 / 256), (0.96, float(np.float32(0.96)))):
        found = predictions([0, 0], [similarity, similarity - 1e-4], [True, False], [1.0])
        assert found.at(near).recall(np.ones(1)) == found.at(near).precision(np.ones(1)) == 1
    close = predictions([0, 0], [float(np.float32(0.400021)), float(np.float32(0.40002))], [True, False], [1.0])
    assert close.at(close.best_threshold()).f1(np.ones(1)) == 1


def test_a_draw_without_a_true_pair_says_nothing() -> None:
    found = predictions([0, 1], [0.9, 0.8], [True, True], [1, 1, 0, 0])
    for of in (found.micro_ap, found.recall_at_precision, found.at(0.5).recall, found.at(0.5).precision):
        figure = intervals.measure({"figure": of}, np.arange(4))["figure"]
        assert (figure.value, figure.low, figure.high) == (1, 1, 1)


def test_precision_recall_and_f1_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(4)
    right = random.random(200) < 0.3
    score = random.random(200) + 0.3 * right
    found = predictions([0] * 200, score.tolist(), right.tolist(), [float(right.sum())]).at(0.7)
    expected = sklearn_metrics.precision_recall_fscore_support(right, score >= 0.7, average="binary")
    one = np.ones(1)
    assert (found.precision(one), found.recall(one), found.f1(one)) == pytest.approx(expected[:3])


def test_weights_count_questions_as_often_as_they_say() -> None:
    """What the bootstrap relies on: a weight of two is the question asked twice, but for the order within ties."""
    question, score, right = [0, 0, 1, 2, 2], [0.9, 0.3, 0.8, 0.7, 0.2], [True, False, False, True, False]
    found = predictions(question, score, right, [1, 0, 2])
    twice = predictions([*question, 3, 3], [*score, 0.7, 0.2], [*right, True, False], [1, 0, 2, 2])
    weights, ones = np.array([1.0, 1, 2]), np.ones(4)
    assert found.recall_at_precision(weights, 0) == twice.recall_at_precision(ones, 0) == 3 / 5
    for threshold in (0.25, 0.5, 0.75, 0.85):
        once, both = found.at(threshold), twice.at(threshold)
        assert once.precision(weights) == both.precision(ones)
        assert once.recall(weights) == both.recall(ones)
        assert once.f1(weights) == pytest.approx(both.f1(ones))
    assert metrics.mean(np.array([1.0, 0, np.nan]))(np.array([3.0, 1, 5])) == 0.75


def test_intervals_are_those_of_scipy_and_wider_where_questions_hang_together() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(5).random(200)
    found = intervals.measure({"mean": metrics.mean(values)}, np.arange(200))["mean"]
    drawn = stats.bootstrap((values,), np.mean, n_resamples=1000, method="percentile", rng=0).confidence_interval
    assert found.value == pytest.approx(values.mean())
    width = drawn.high - drawn.low
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=width / 8)
    fives = np.repeat(values[:40], 5)
    alone = intervals.measure({"mean": metrics.mean(fives)}, np.arange(200))["mean"]
    together = intervals.measure({"mean": metrics.mean(fives)}, np.repeat(np.arange(40), 5))["mean"]
    assert together.high - together.low > 1.8 * (alone.high - alone.low)  # about the root of five


def test_hits_leave_out_questions_without_a_right_answer() -> None:
    ranked = Ranked(
        np.zeros((3, 1), np.int64), np.zeros((3, 1), np.float32),
        [np.array([2]), np.array([], np.int64), np.array([], np.int64)], np.array([1, 1, 0]),
    )  # fmt: skip
    assert metrics.mean(metrics.hits(ranked, 2))(np.ones(3)) == 0.5
