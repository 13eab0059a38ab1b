"""One network on several devices gives what it gives on one, and every device has its share."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pgimgsearch.models import catalog, encoder, replicas
from pgimgsearch.models.batches import Batches
from pgimgsearch.models.torch_encoder import TorchEncoder
from tests.models.tiny import save, tiny


def test_a_batch_is_divided_among_all_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, *tiny("clip-vit-b-32"))
    asked, sizes = [], []

    def load(device: str) -> TorchEncoder:
        asked.append(device)
        loaded = encoder.load(catalog.resolve(f"hf:{tmp_path}"))
        assert isinstance(loaded, TorchEncoder)
        forward = loaded.forward

        def counted(prepared: list[np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
            sizes.append((device, len(prepared)))
            return forward(prepared)

        loaded.forward = counted  # type: ignore[method-assign, assignment]
        return loaded

    first = load("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert replicas.on_all_gpus(first, load) is first
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    spread = replicas.on_all_gpus(first, load)
    assert asked == ["cuda", "cuda:1", "cuda:2"]
    height, width = first.towers.preprocess.size
    pictures = list(np.random.default_rng(1).random((11, 3, height, width), dtype=np.float32))
    wanted = first.embed(pictures)
    sizes.clear()
    found = Batches(spread, 8).embed(pictures)
    assert found.keys() == wanted.keys()
    for output, vectors in wanted.items():
        np.testing.assert_allclose(found[output], vectors, atol=1e-5)
    assert sorted(sizes) == sorted(
        [("cuda", 2), ("cuda:1", 3), ("cuda:2", 3), ("cuda", 1), ("cuda:1", 1), ("cuda:2", 1)]
    )
    assert len(spread.embed(pictures[:1])["projection"]) == 1
    assert spread.fingerprint("projection") == first.fingerprint("projection")
    np.testing.assert_array_equal(spread.embed_text(["red"]), first.embed_text(["red"]))
