"""Bounded and ordered concurrency: prefetching, mapping in a pool, batching, and signals that stop a run."""

import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END = object()
SECONDS_BETWEEN_LOOKS, SECONDS_TO_FINISH = 0.2, 1.0


def prefetch(
    items: Iterator[T], depth: int, name: str, stopped: threading.Event | None = None
) -> Generator[T, None, None]:
    """Run an iterator in a thread of its own, at most ``depth`` items ahead; its errors are raised here.

    A moment after ``stopped`` is set it ends, and does not wait for the thread, which may wait for a network.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item: object) -> None:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        last: object = _END
        try:
            with _closing(items):
                for item in items:
                    put(item)
                    if closed.is_set():
                        return
        except BaseException as error:  # handed over and raised in the consumer's thread
            last = _Raised(error)
        put(last)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        for item in iter(ready.get, _END) if stopped is None else _until(ready, stopped):
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        closed.set()
        thread.join(SECONDS_BETWEEN_LOOKS if stopped is not None and stopped.is_set() else None)


def _until(ready: "queue.Queue[Any]", stopped: threading.Event) -> Iterator[Any]:
    end: float | None = None
    while end is None or time.monotonic() < end:
        if stopped.is_set() and end is None:
            end = time.monotonic() + SECONDS_TO_FINISH
        with suppress(queue.Empty):
            item = ready.get(timeout=SECONDS_BETWEEN_LOOKS)
            if item is _END:
                return
            yield item


@contextmanager
def worker_pool(workers: int, name: str, stopped: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """A pool that is waited for at the end, unless ``stopped`` is set."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=not stopped.is_set(), cancel_futures=True)


def ordered_map(pool: Executor, function: Callable[[T], R], items: Iterator[T], ahead: int) -> Generator[R, None, None]:
    """Map in a pool, in order, with at most ``ahead`` calls under way."""
    pending: deque[Future[R]] = deque()
    try:
        with _closing(items):
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def batched(items: Iterable[T], count: int, weight: Callable[[T], int], limit: int) -> Generator[list[T], None, None]:
    """Lists of at most ``count`` items whose weights stay below ``limit`` (a single item may exceed it)."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and (len(batch) >= count or total + weight(item) > limit):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += weight(item)
    if batch:
        yield batch


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a chunk is never torn; a second one ends the process at once."""
    stopped = threading.Event()

    def handle(number: int, _: object) -> None:
        if stopped.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stopped.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _closing(items: Iterator[T]) -> Any:
    return closing(items) if hasattr(items, "close") else _nothing()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def give_way() -> None:
    """Let the calling thread have the processor after others; where threads have no priority, nothing changes."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(10, os.getpriority(os.PRIO_PROCESS, thread)))
