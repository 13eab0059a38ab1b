"""What a long operation reports while it runs: messages for people, and how far it is."""

from collections.abc import Callable
from dataclasses import dataclass


def _ignore(*_: object) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """``say`` takes a message, ``progress`` what is done and of how many (None where nobody knows)."""

    say: Callable[[str], None] = _ignore
    progress: Callable[[int, int | None], None] = _ignore


SILENT = Reporter()
