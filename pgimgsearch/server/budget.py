"""What many clients share: bytes that wait to be worked on, and places for connections."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from pgimgsearch.server.errors import Busy, TooLarge

# Texts may hold commas and brackets of their own.
MOST_NESTED, MOST_STRINGS, MOST_PARTS = 100_000, 25_000, 1_000_000

C = TypeVar("C")


def check_structure(text: str) -> None:
    """Refuse JSON of so many parts that reading it takes many times its bytes."""
    Structure().add(text.encode("utf-8", "surrogatepass"))


@dataclass(slots=True)
class Structure:
    """Parts of JSON, as its bytes arrive."""

    nested: int = 0
    quotes: int = 0
    parts: int = 0

    def add(self, data: bytes) -> None:
        """Count; raises TooLarge for too many."""
        self.nested += data.count(b"[") + data.count(b"{")
        self.quotes += data.count(b'"')
        self.parts += data.count(b",")
        if self.nested > MOST_NESTED or self.quotes > 2 * MOST_STRINGS or self.parts > MOST_PARTS:
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
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # all kinds of places leave some for what works
        self._most = most if files == resource.RLIM_INFINITY else min(most, max(8, files // 5))
        self._close = close
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
