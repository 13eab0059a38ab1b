"""An embedder inside the test, whose answers the test can hold back."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.connection import connect
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.server.in_thread import in_thread
from pgimgsearch.server.metrics import Metrics
from pgimgsearch.server.pg_server import PgServer
from pgimgsearch.server.service import Service
from tests.server.conftest import PASSWORD


@dataclass
class HeldBack:
    """An encoder that waits until it is let go, and keeps the sizes of its batches."""

    inner: Any
    go: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    waiting: Callable[[], int] = int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As the encoder does, when it may."""
        self.batches.append(len(texts))
        self.entered.set()
        assert self.go.wait(120)
        vectors: NDArray[np.float32] = self.inner.embed_text(texts)
        return vectors


@contextmanager
def held_back(url: str, most_waiting: int = 512) -> Iterator[tuple[HeldBack, int]]:
    """Serve palette for Postgres; yields its encoder and the port."""
    with connect(url) as connection:
        model = open_model(connection, "palette")
    encoder = HeldBack(model.encoder)
    held = LoadedModel(model.stored, encoder, model.batch_size)  # type: ignore[arg-type]
    service = Service([held], {"text": "palette"}, None, Metrics(), 1, most_waiting)
    encoder.waiting = lambda: sum(batcher.waiting for batcher in service._batchers.values())
    with in_thread(PgServer(service, PASSWORD, None)) as port:
        yield encoder, port
        encoder.go.set()
    service.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does; fails after two minutes."""
    never = threading.Event()
    for _ in range(12_000):
        if condition():
            return
        never.wait(0.01)
    raise AssertionError("it did not happen")
