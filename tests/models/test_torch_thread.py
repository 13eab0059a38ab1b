"""Networks compute in one thread, whoever asks, and on a CPU in pieces that fit."""

import _thread
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pgimgsearch.models import lookup
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.load import load
from pgimgsearch.models.runtime import cpu_parallel as lanes
from pgimgsearch.models.runtime.torch_encoder import TorchEncoder
from pgimgsearch.models.runtime.torch_thread import in_network_thread
from tests.models.tiny import save, tiny

pytestmark = pytest.mark.slow


def test_every_pass_runs_in_the_same_thread(tmp_path: Path) -> None:
    save(tmp_path, *tiny("clip-vit-b-32"))
    loaded = load(lookup.resolve(f"hf:{tmp_path}"), Placement("cpu"))
    assert isinstance(loaded, TorchEncoder)
    passes: set[int] = set()
    for module in loaded.towers.network.modules():
        module.register_forward_hook(lambda *_: passes.add(threading.get_ident()))
    height, width = loaded.towers.preprocess.size
    pixels = np.zeros((3, height, width), np.float32)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda _: (loaded.embed([pixels]), loaded.embed_text(["red"])), range(16)))
    assert len(passes) == 1
    assert threading.get_ident() not in passes


def test_a_piece_is_as_many_pictures_as_its_widest_layer_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, *tiny("clip-vit-b-32"))
    loaded = load(lookup.resolve(f"hf:{tmp_path}"), Placement("cpu"))
    assert isinstance(loaded, TorchEncoder)
    network = loaded.towers.network
    config = network.config.vision_config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    monkeypatch.setattr(lanes, "PIECE_BYTES", 3 * tokens * config.intermediate_size * 4)
    monkeypatch.setattr(lanes, "lanes", lambda: 2)
    sizes: list[int] = []
    network.vision_model.post_layernorm.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    pixels = np.zeros((3, config.image_size, config.image_size), np.float32)
    loaded.embed([pixels] * 11)
    assert sorted(sizes) == [2, 3, 3, 3]


def test_errors_come_back_and_calls_may_be_nested() -> None:
    @in_network_thread
    def inner() -> int:
        return threading.get_ident()

    @in_network_thread
    def outer() -> tuple[int, int]:
        return threading.get_ident(), inner()

    @in_network_thread
    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert len(set(outer())) == 1


def test_ctrl_c_waits_for_the_pass() -> None:
    """Python would abort if it ended in the middle of one."""
    ended = []

    @in_network_thread
    def interrupted() -> None:
        _thread.interrupt_main()
        ended.append(sum(range(5_000_000)))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended
