"""A server that is killed, and started again."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgimgsearch.database.embedded import Embedded


class Mortal:
    """An embedded server with an end."""

    def __init__(self, home: Path) -> None:
        self.server = Embedded(home)
        self.url = self.server.keep(None)
        self._helpers: list[threading.Thread] = []

    def kill(self) -> None:
        """Kill it with all its backends; its shared memory goes with it."""
        pid = self.server.record().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def kill_for_a_moment(self) -> None:
        """Kill it, and start it again from a thread."""
        self.kill()
        self._helpers.append(threading.Thread(target=self.come_back))
        self._helpers[-1].start()

    def come_back(self) -> None:
        """Start it, once what was killed has ended."""
        self.server.keep(None)

    def stop(self) -> None:
        """For good, once nobody is starting it."""
        for helper in self._helpers:
            helper.join()
        self.server.stop(force=True)


@contextmanager
def mortal_server(home: Path) -> Iterator[Mortal]:
    """One for a block."""
    mortal = Mortal(home)
    try:
        yield mortal
    finally:
        mortal.stop()
