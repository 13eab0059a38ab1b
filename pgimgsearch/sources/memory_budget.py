"""The memory that decoding threads share: a picture that needs much waits until others are done with theirs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from pgimgsearch.database.memory import MEGABYTE, machine_memory


class Room:
    """So many bytes. Not first come, first served: what is small passes by what waits."""

    def __init__(self, size: int) -> None:
        self.size, self._taken = size, 0
        self._changed = threading.Condition()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield what takes bytes until the block ends, waiting for the first of them until they fit or nobody has any.

        More of a share is had at once: two that wait for more with some in hand would wait for ever.
        """
        own = 0

        def take(count: int) -> None:
            nonlocal own
            with self._changed:
                if not own:
                    self._changed.wait_for(lambda: not self._taken or self._taken + count <= self.size)
                self._taken += count
            own += count

        try:
            yield take
        finally:
            with self._changed:
                self._taken -= own
                self._changed.notify_all()


@cache
def room() -> Room:
    """That of this process: half of the machine's memory."""
    return Room(machine_memory() * MEGABYTE // 2)
