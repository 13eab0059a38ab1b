"""One network on several GPUs: a batch is divided among them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgimgsearch.models.runtime.cpu_parallel import passes
from pgimgsearch.models.runtime.torch_encoder import TorchEncoder


class Replicas:
    """An Encoder of several that hold the same network; what is not a pass over images is left to the first."""

    def __init__(self, encoders: Sequence[TorchEncoder]) -> None:
        self._encoders = encoders
        self._pool = ThreadPoolExecutor(len(encoders) * passes(encoders[0].device), thread_name_prefix="replica")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoders[0], name)

    def embed(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Output -> (n, dim) float32."""
        count = min(len(self._encoders), len(prepared))
        bounds = [len(prepared) * number // count for number in range(count + 1)]
        shares = [prepared[start:end] for start, end in pairwise(bounds)]
        parts = list(self._pool.map(lambda encoder, share: encoder.forward(share), self._encoders, shares))
        return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}


def on_gpus(load: Callable[[str], TorchEncoder], device: str) -> TorchEncoder | Replicas:
    """What ``load`` makes for a device, or for each of several: ``cuda`` is all that are visible, ``cuda:0,3`` two."""
    name, _, numbers = device.partition(":")
    chosen = [f"{name}:{number.strip()}" for number in numbers.split(",")] if "," in numbers else [device]
    first = load(chosen[0])
    if first.device == "cuda":
        chosen += [f"cuda:{number}" for number in range(1, torch.cuda.device_count())]
    others = [load(place) for place in chosen[1:]]
    return Replicas([first, *others]) if others else first
