"""Passes of a network: one after the other on a CPU, two under way on a GPU, and nothing lost or out of order."""

import threading
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pgimgsearch.embeddings.deferred_models import DeferredModels
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import ModelError
from pgimgsearch.ingest.embed import embed
from pgimgsearch.ingest.item import Item
from pgimgsearch.ingest.stopwatch import Stopwatch
from pgimgsearch.sources.source import ScannedFile

PICTURES, BATCH, FITTING = 41, 8, 3


class Counting:
    """An encoder whose memory holds three images, and which counts the passes under way."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.under_way = self.most = 0
        self.first_two = threading.Barrier(2 if device == "cuda" else 1)
        self.lock = threading.Lock()
        self.met = threading.local()

    def embed(self, prepared: list[Any]) -> dict[str, Any]:
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        if not getattr(self.met, "done", False):
            self.first_two.wait(timeout=30)  # broken, and raised, unless two come
            self.met.done = True
        try:
            if len(prepared) > FITTING:
                raise MemoryError
            return {"vector": np.stack(prepared)}
        finally:
            with self.lock:
                self.under_way -= 1


@pytest.mark.parametrize(("device", "at_once"), [("cpu", 1), ("cuda", 2)])
def test_as_many_passes_as_the_device_wants_in_order(device: str, at_once: int) -> None:
    encoder = Counting(device)
    stored = SimpleNamespace(model_id=1, name="test", output="vector", storage="vector", normalize=False)
    model = LoadedModel(cast(Any, stored), cast(Any, encoder), BATCH)
    items = [Item(ScannedFile(str(number), ""), frozenset({0}), prepared={0: np.array([number + 1.0, 1.0])})
             for number in range(PICTURES)]  # fmt: skip
    watch = Stopwatch()
    done = list(embed(iter(items), DeferredModels.of([model]), watch))
    assert [item.file.path for item in done] == [str(number) for number in range(PICTURES)]
    assert [float(item.vectors[0][0]) for item in done] == [number + 1 for number in range(PICTURES)]
    assert watch.stages["embed test"].images == PICTURES
    assert encoder.most == at_once


def test_a_failed_load_is_not_repeated_and_other_models_are_refused() -> None:
    loads: list[int] = []

    def fail() -> list[LoadedModel]:
        loads.append(1)
        raise ModelError("no weights")

    deferred = DeferredModels([], fail)
    for _ in range(3):
        with pytest.raises(ModelError, match="no weights"):
            deferred.load()
    assert loads == [1]
    one, other = (cast(Any, SimpleNamespace(model_id=number, name=f"m{number}")) for number in (1, 2))
    with pytest.raises(ModelError, match="m1 was replaced"):
        DeferredModels([one], lambda: [LoadedModel(other, cast(Any, None), 1)]).load()
