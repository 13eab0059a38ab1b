"""How long each stage of a run was busy, and how many images went through it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Stage:
    """What a stage did: busy seconds, summed over its threads, and images that went through."""

    seconds: float = 0.0
    images: int = 0


class Stopwatch:
    """The stages of a run by name."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self._lock = threading.Lock()

    @contextmanager
    def time(self, name: str, images: int = 1) -> Iterator[None]:
        """Add the time of a block to a stage, and the images it worked on."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start, images)

    def add(self, name: str, seconds: float, images: int) -> None:
        """Add what was done to a stage."""
        with self._lock:
            stage = self.stages.setdefault(name, Stage())
            stage.seconds += seconds
            stage.images += images
