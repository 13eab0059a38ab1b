"""What many clients share: bytes that wait to be worked on, and places for connections."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from pgimgsearch.server.errors import Busy, TooLarge

MOST_NESTED, MOST_PARTS = 100_000, 2_000_000  # texts may hold commas and brackets of their own

C = TypeVar("C")


def check_structure(text: str) -> None:
    """Refuse JSON of so many parts that reading it takes many times its bytes."""
    if text.count("[") + text.count("{") > MOST_NESTED or text.count(",") > MOST_PARTS:
        raise TooLarge("the request has too many parts", hint="send texts, an image, and nothing else")


class ByteBudget:
    """Bytes that were received and are not answered yet. For one event loop."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes bytes until the block ends; it raises Busy where there are too few."""
        own = 0

        def take(count: int) -> None:
            nonlocal own
            if self.taken + count > self.size:
                raise Busy("too many large requests at once", hint="try again in a moment")
            self.taken += count
            own += count

        try:
            yield take
        finally:
            self.taken -= own


class Places(Generic[C]):
    """Connections that do nothing yet: where there are too many, the one that has waited longest is closed."""

    def __init__(self, most: int, close: Callable[[C], None]) -> None:
        self._most, self._close = most, close
        self._waiting: dict[C, None] = {}  # in order

    def enter(self, connection: C) -> None:
        """It waits, as of now."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = None
        if len(self._waiting) > self._most:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            self._close(longest)

    def leave(self, connection: C) -> None:
        """It works, or is gone."""
        self._waiting.pop(connection, None)
