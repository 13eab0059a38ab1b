"""How much of the machine a work in the background takes."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgimgsearch.ingest.throttle import Throttle


class Machine:
    """A clock, the time that this process worked, and that of a GPU; waiting moves the clock alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
        self.now = self.cpu = self.busy = 0.0
        self.cores = cores
        self.stopped = threading.Event()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.cpu)
        monkeypatch.setattr("pgimgsearch.ingest.throttle.cores", lambda: cores)
        monkeypatch.setattr(self.stopped, "wait", self.wait)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def work(self, seconds: float, cores: float, busy: float) -> None:
        self.now, self.cpu, self.busy = self.now + seconds, self.cpu + seconds * cores, self.busy + busy


@given(
    load=st.floats(0.01, 0.99), cores=st.integers(1, 64),
    pieces=st.lists(st.tuples(st.floats(0.001, 10), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20),
)  # fmt: skip
def test_work_stays_within_its_share(load: float, cores: int, pieces: list[tuple[float, float, float]]) -> None:
    """Of the cores and of the device, after every piece; and no longer than that needs."""
    with pytest.MonkeyPatch.context() as patched:
        machine = Machine(patched, cores)
        pace = Throttle(load, machine.stopped, lambda: machine.busy)
        for seconds, used, device in pieces:
            machine.work(seconds, used * cores, device * seconds)
            before = machine.now
            pace.wait()
            share = max(machine.cpu / cores, machine.busy) / machine.now
            assert share <= load * 1.000001
            assert machine.now == before or share == pytest.approx(load)


def test_a_full_load_never_waits_and_a_stop_ends_a_wait() -> None:
    with pytest.MonkeyPatch.context() as patched:
        machine = Machine(patched, 2)
        machine.work(10, 2, 10)
        Throttle(1.0, machine.stopped, lambda: machine.busy).wait()
        assert machine.now == 10
    stopped = threading.Event()
    stopped.set()
    busy = iter([0.0, 1e6])
    Throttle(0.01, stopped, lambda: next(busy)).wait()  # a wait of years
