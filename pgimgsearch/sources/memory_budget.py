"""The memory that decoding threads share: an image that needs much waits until others have freed theirs."""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pgimgsearch.database.memory import MEGABYTE, machine_memory

LARGE = 128 << 20  # bytes of a share, after which free memory is given back


class TooLittleMemory(MemoryError):  # noqa: N818  (its name is what ingest_failure stores)
    """The image does not fit into memory."""


def give_back() -> None:
    """Give free memory back to the system, which glibc keeps for each thread."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


class MemoryBudget:
    """A number of bytes. Not first come, first served: small requests pass by those that wait.

    One that is larger than the budget waits until it is alone; one that is larger than ``most`` is refused.
    """

    def __init__(self, size: int, most: int | None = None) -> None:
        self.size, self.most, self._taken = size, 2 * size if most is None else most, 0
        self._changed = threading.Condition()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves bytes until the block ends; the first call waits until they fit.

        Further calls do not wait: two shares that each hold some and wait for more would wait for ever.
        """
        own = 0

        def reserve(count: int) -> None:
            nonlocal own
            if count > self.most:
                raise TooLittleMemory(
                    f"decoding takes {count >> 20} MB, and this machine or container has {self.most >> 20} for an image"
                )
            with self._changed:
                if not own:
                    self._changed.wait_for(lambda: not self._taken or self._taken + count <= self.size)
                self._taken += count
            own += count

        try:
            yield reserve
        finally:
            with self._changed:
                self._taken -= own
                self._changed.notify_all()
            if own > LARGE:
                give_back()


@cache
def memory_budget() -> MemoryBudget:
    """The budget of this process: half of the machine's memory, as networks and libraries need some, too."""
    memory = machine_memory() * MEGABYTE
    return MemoryBudget(memory // 2, int(memory * 0.6))
