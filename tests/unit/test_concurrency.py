"""The joints of the pipeline: order, bounds, errors, early stops."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgimgsearch.concurrency import batched, ordered_map, prefetch


@given(st.lists(st.integers(0, 50)), st.integers(1, 6), st.integers(1, 100))
def test_batches_keep_order_and_bounds(items: list[int], count: int, limit: int) -> None:
    batches = list(batched(items, count, lambda item: item, limit))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) <= count and (len(batch) == 1 or sum(batch) <= limit) for batch in batches)


def test_prefetch_keeps_order_and_hands_errors_over() -> None:
    def items() -> Iterator[int]:
        yield from range(50)
        raise ValueError("broken")

    received = []
    with pytest.raises(ValueError, match="broken"):
        for item in prefetch(items(), 4, "test"):
            received.append(item)
    assert received == list(range(50))


def test_prefetch_runs_ahead_only_so_far() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    ahead = prefetch(items(), 3, "test")
    assert [next(ahead) for _ in range(5)] == list(range(5))
    ahead.close()
    assert len(made) <= 5 + 3 + 2


def test_closing_ends_the_thread_and_closes_what_feeds_it() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from iter(int, 1)
        finally:
            closed.set()

    ahead = prefetch(items(), 2, "to-be-closed")
    next(ahead)
    ahead.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "to-be-closed"]


def test_ordered_map_is_ordered_bounded_and_raises() -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def work(item: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        with lock:
            under_way -= 1
        if item == 90:
            raise RuntimeError("ninety")
        return item * 2

    with ThreadPoolExecutor(8) as pool:
        results = ordered_map(pool, work, iter(range(100)), 4)
        assert [next(results) for _ in range(90)] == [2 * n for n in range(90)]
        with pytest.raises(RuntimeError, match="ninety"):
            next(results)
    assert most <= 4
