"""Hold background work back to a share of the machine."""

import threading
import time
from collections.abc import Callable

from pgimgsearch.models.runtime.cpu_parallel import cores


class Throttle:
    """Limits work to ``max_load``: the share of this machine's cores, or of the device, that it takes over time.

    ``busy_seconds`` is how long the encoder has worked so far; where that is on a GPU, the cores are hardly busy.
    """

    def __init__(self, max_load: float, stopped: threading.Event, busy_seconds: Callable[[], float]) -> None:
        self.max_load, self.stopped, self.busy_seconds = max_load, stopped, busy_seconds
        self.cores = cores()
        self.start, self.cpu, self.busy = time.monotonic(), time.process_time(), busy_seconds()

    def wait(self) -> None:
        """Wait until the work so far is within the share; a stop ends the wait."""
        if self.max_load >= 1:
            return
        work = max((time.process_time() - self.cpu) / self.cores, self.busy_seconds() - self.busy)
        excess = work / self.max_load - (time.monotonic() - self.start)
        if excess > 0:
            self.stopped.wait(excess)
