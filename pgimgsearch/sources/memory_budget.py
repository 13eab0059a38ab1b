"""The memory that decoding threads share: an image that needs much waits until others have freed theirs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from pgimgsearch.database.memory import MEGABYTE, machine_memory


class MemoryBudget:
    """A number of bytes. Not first come, first served: small requests pass by those that wait."""

    def __init__(self, size: int) -> None:
        self.size, self._taken = size, 0
        self._changed = threading.Condition()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves bytes until the block ends; the first call waits until they fit.

        Further calls do not wait: two shares that each hold some and wait for more would wait for ever.
        """
        own = 0

        def reserve(count: int) -> None:
            nonlocal own
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


@cache
def memory_budget() -> MemoryBudget:
    """The budget of this process: half of the machine's memory."""
    return MemoryBudget(machine_memory() * MEGABYTE // 2)
