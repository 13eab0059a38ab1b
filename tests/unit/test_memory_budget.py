"""Memory that threads share: never more than there is, unless by one alone, and nobody waits for ever."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pgimgsearch.sources.decode import BYTES_A_PIXEL, decode
from pgimgsearch.sources.memory_budget import MemoryBudget

SIZE = 10


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 15), min_size=1, max_size=3), min_size=1, max_size=30))
def test_all_get_their_turn_and_no_more_than_fits(requests: list[list[int]]) -> None:
    room, lock = MemoryBudget(SIZE), threading.Lock()
    first: dict[int, int] = {}

    def work(number: int) -> None:
        with room.share() as take:
            for count in requests[number]:
                take(count)
                with lock:
                    first.setdefault(number, count)
                    assert sum(first.values()) <= SIZE or len(first) == 1
            with lock:
                del first[number]

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(work, number) for number in range(len(requests))]
        for one in done:
            one.result(timeout=60)


def test_what_does_not_fit_waits_until_it_does() -> None:
    room, waits = MemoryBudget(SIZE), threading.Event()

    class Watched(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waits.set()
            return super().wait(timeout)

    room._changed = Watched()

    def small() -> None:
        with room.share() as take:
            take(SIZE - 5)

    with ThreadPoolExecutor(1) as pool:
        with room.share() as take:
            take(6)
            waiting = pool.submit(small)
            assert waits.wait(timeout=60)
            assert not waiting.done()
        waiting.result(timeout=60)


def test_what_a_broken_picture_has_taken_is_given_back() -> None:
    room = MemoryBudget(SIZE)
    with pytest.raises(OSError, match="broken"), room.share() as take:
        take(SIZE + 1)
        raise OSError("broken")
    with room.share() as take:
        take(1)
        with ThreadPoolExecutor(1) as pool, room.share() as other:
            pool.submit(other, SIZE - 1).result(timeout=60)


def test_a_picture_says_what_it_takes_before_its_pixels_are_there() -> None:
    out = io.BytesIO()
    Image.new("RGB", (1600, 1200)).save(out, "JPEG")
    taken: list[int] = []
    decode(out.getvalue(), reserve=taken.append)
    assert taken == [1600 * 1200 * BYTES_A_PIXEL]
    with pytest.raises(OSError, match="truncated"):
        decode(out.getvalue()[:2000], reserve=taken.append)
    assert len(taken) == 2
