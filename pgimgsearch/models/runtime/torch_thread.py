"""The one thread in which networks are loaded, and run but for CUDA.

On a CPU torch computes with OpenMP, which keeps a pool of threads for each thread that calls it. When the pools
together outnumber the cores, GNU's OpenMP sleeps at its barriers instead of spinning, and a forward pass takes 1.3 to
1.8 times as long (measured on 2 cores, models that were loaded in one thread and run in another).
"""

import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
SECONDS_TO_END = 5.0  # a pass takes less; a download may take longer and is not waited for


class _NetworkThread:
    """Started by the first call. A daemon, as Ctrl-C should not wait for the end of a download."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], R]) -> R:
        """Run a function there and wait for it; its errors are raised here."""
        if threading.current_thread() is self._thread:
            return function()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="networks", daemon=True)
                self._thread.start()
        answer: Future[R] = Future()
        self._calls.put((answer, function))
        try:
            return answer.result()
        except KeyboardInterrupt:  # Python would abort if it ended in the middle of a pass
            wait([answer], SECONDS_TO_END)
            raise

    def _run(self) -> None:
        while True:
            answer, function = self._calls.get()
            try:
                answer.set_result(function())
            except BaseException as error:  # raised where it was called
                answer.set_exception(error)
            del answer, function  # the next call may be long in coming


_NETWORKS = _NetworkThread()


def in_network_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function run in that thread, whoever calls it."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return _NETWORKS.call(lambda: function(*args, **kwargs))

    return run
