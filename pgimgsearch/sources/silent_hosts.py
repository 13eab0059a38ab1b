"""Hosts of the web that do not answer, or slowly: after a few waits in a row they are left alone for a while."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from pgimgsearch.sources.web import TooSlow

MOST_WAITS, SECONDS_ALONE = 3, 30.0  # URLs, and then one is asked now and then
SLOW = 20.0  # seconds from which an answer is a wait, too: of a host that sends a little at a time


class SilentHosts:
    """Waits in a row, by host, over all threads."""

    def __init__(self) -> None:
        self._waits: dict[str, tuple[int, float]] = {}  # how many, and when the last one ended
        self._lock = threading.Lock()

    @contextmanager
    def asked(self, url: str) -> Iterator[None]:
        """Raise TooSlow for a host that is left alone, and note how the block ends."""
        host = urlsplit(url).netloc.lower()
        with self._lock:
            waits, last = self._waits.get(host, (0, 0.0))
        if waits >= MOST_WAITS and time.monotonic() - last < SECONDS_ALONE:
            raise TooSlow(f"{host} has not answered {waits} times in a row, or slowly, and is not asked for a while")
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            waited = isinstance(getattr(error, "reason", error), TooSlow | TimeoutError)
            self._note(host, silent=waited or time.monotonic() - start > SLOW)
            raise
        self._note(host, silent=time.monotonic() - start > SLOW)

    def _note(self, host: str, *, silent: bool) -> None:
        with self._lock:
            if silent:
                self._waits[host] = (self._waits.get(host, (0, 0.0))[0] + 1, time.monotonic())
            else:  # also one that says that there is no such file
                self._waits.pop(host, None)


silent_hosts = SilentHosts()
