"""One network on several devices gives what it gives on one, and every device has its share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgimgsearch.models import load as models_load
from pgimgsearch.models import lookup
from pgimgsearch.models.runtime.batches import Batches
from pgimgsearch.models.runtime.multi_gpu import Replicas, on_gpus
from tests.models.tiny import save, tiny

pytestmark = pytest.mark.slow


class Placed:
    """An encoder that says it is on a GPU, and counts what it is given."""

    def __init__(self, folder: Path, device: str) -> None:
        self.loaded: Any = models_load.load(lookup.resolve(f"hf:{folder}"))
        self.device = "cuda" if device == "auto" else device
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loaded, name)

    def forward(self, prepared: list[Any]) -> Any:
        self.sizes.append(len(prepared))
        return self.loaded.forward(prepared)


def test_a_batch_is_divided_among_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, *tiny("clip-vit-b-32"))
    made: list[Placed] = []

    def load(device: str) -> Any:
        made.append(Placed(tmp_path, device))
        return made[-1]

    def places(device: str, visible: int) -> list[str]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        made.clear()
        found = on_gpus(load, device)
        assert isinstance(found, Replicas) is (len(made) > 1)
        return [one.device for one in made]

    assert places("auto", 1) == ["cuda"]
    assert places("cuda:1", 4) == ["cuda:1"]
    assert places("cuda:0,3", 4) == ["cuda:0", "cuda:3"]
    assert places("cuda", 2) == ["cuda", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    made.clear()
    spread: Any = on_gpus(load, "auto")
    one = made[0].loaded
    height, width = one.towers.preprocess.size
    pictures = list(np.random.default_rng(1).random((11, 3, height, width), dtype=np.float32))
    wanted = one.embed(pictures)
    found = Batches(spread, 8).embed(pictures)
    assert found.keys() == wanted.keys()
    for output, vectors in wanted.items():
        np.testing.assert_allclose(found[output], vectors, atol=1e-5)
    assert [each.sizes for each in made] == [[2, 1], [3, 1], [3, 1]]
    assert len(spread.embed(pictures[:1])["projection"]) == 1
    assert spread.fingerprint("projection") == one.fingerprint("projection")
    np.testing.assert_array_equal(spread.embed_text(["red"]), one.embed_text(["red"]))
