"""All products of unit vectors at once, on a GPU or on all cores: what a search without an index is."""

import importlib.util
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Above = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


class Products(Protocol):
    """Vectors of length one, held in half precision, multiplied in single; ``tile`` rows go well at once."""

    tile: int

    def above(self, rows: slice, columns: slice, cut: float) -> Above:
        """Places of all products of rows with columns that are at least ``cut``, and the products."""


class CpuProducts:
    """By NumPy. ``vectors`` is (n, dim) float16."""

    tile = 2048

    def __init__(self, vectors: NDArray[np.float16]) -> None:
        self.vectors = vectors

    def above(self, rows: slice, columns: slice, cut: float) -> Above:
        """See Products."""
        products = self.vectors[rows].astype(np.float32) @ self.vectors[columns].astype(np.float32).T
        found = np.nonzero(products >= cut)
        return found[0] + rows.start, found[1] + columns.start, products[found]


class TorchProducts:
    """The same by torch, on a device that holds all vectors."""

    tile = 16_384

    def __init__(self, vectors: NDArray[np.float16], device: str) -> None:
        import torch

        self.vectors: Any = torch.from_numpy(vectors).to(device)

    def above(self, rows: slice, columns: slice, cut: float) -> Above:
        """See Products."""
        products = self.vectors[rows].float() @ self.vectors[columns].float().T
        found = (products >= cut).nonzero(as_tuple=True)
        values = products[found].cpu().numpy()
        return found[0].cpu().numpy() + rows.start, found[1].cpu().numpy() + columns.start, values


def hold(vectors: NDArray[np.float16], device: str) -> Products:
    """Hold vectors where they are to be multiplied."""
    return CpuProducts(vectors) if device == "cpu" else TorchProducts(vectors, device)


def settle_device(device: str) -> str:
    """What ``auto`` is here: a GPU if there is one and torch to use it, else cpu. Raises ModelError for no device."""
    if device == "cpu" or (device == "auto" and not _may_have_gpu()):
        return "cpu"
    from pgimgsearch.models.runtime.torch_encoder import choose_device

    return choose_device(device)


def _may_have_gpu() -> bool:
    """Asked before torch is, which takes seconds and hundreds of megabytes to import."""
    present = sys.platform == "darwin" or any(
        Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    )
    return present and importlib.util.find_spec("torch") is not None
