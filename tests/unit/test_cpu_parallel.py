"""A batch cut into pieces: every image once, in order, and no piece too large for its core."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pgimgsearch.models.runtime import cpu_parallel as lanes


@given(
    pictures=st.integers(1, 200),
    cores=st.integers(2, 8),
    layer_bytes=st.integers(1, 2 * lanes.PIECE_BYTES),
)
def test_pieces(pictures: int, cores: int, layer_bytes: int) -> None:
    sizes, names = [], set()

    def forward(piece: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        sizes.append(len(piece))
        names.add(threading.current_thread().name)
        return {"first": np.array([[p[0, 0, 0]] for p in piece]), "twice": np.array([[2 * p[0, 0, 0]] for p in piece])}

    batch = [np.broadcast_to(np.float32(number), (3, 8, 8)) for number in range(pictures)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "cores", lambda: cores)
        if not lanes.worthwhile(batch):
            assert pictures < cores
            return
        answers = lanes.embed(forward, batch, layer_bytes)
    assert answers["first"].ravel().tolist() == list(range(pictures))
    assert answers["twice"].ravel().tolist() == [2 * number for number in range(pictures)]
    assert min(sizes) >= 1
    assert max(sizes) == 1 or max(sizes) * layer_bytes <= lanes.PIECE_BYTES
    assert len(sizes) % cores == 0 or max(sizes) == 1  # as many for each core
    assert max(sizes) - min(sizes) <= 1
    assert all(name.startswith("lane") for name in names)
