"""All products of unit vectors at once, on a GPU or on all cores: what a search without an index is."""

import importlib.util
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

A_MILLION = 1_000_000
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

    tile = 4096

    def __init__(self, vectors: NDArray[np.float16], device: str) -> None:
        import torch

        self.vectors: Any = torch.from_numpy(vectors).to(device)

    def above(self, rows: slice, columns: slice, cut: float) -> Above:
        """See Products."""
        products = self.vectors[rows].float() @ self.vectors[columns].float().T
        found = (products >= cut).nonzero(as_tuple=True)
        values = products[found].cpu().numpy()
        return found[0].cpu().numpy() + rows.start, found[1].cpu().numpy() + columns.start, values


class Highest:
    """The ``most`` highest products of each row with columns before it; of equal ones those of the first columns."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: Above = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        self.reduced = 0  # how many were kept when they were last reduced

    def add(self, rows: NDArray[np.int64], columns: NDArray[np.int64], products: NDArray[np.float32]) -> None:
        """Take more of them in, in any order."""
        before = columns < rows
        a, b, values = self.kept
        self.kept = (
            np.concatenate([a, rows[before]]), np.concatenate([b, columns[before]]),
            np.concatenate([values, products[before]]),
        )  # fmt: skip
        if len(self.kept[0]) > max(2 * self.reduced, A_MILLION):
            self.result()

    def result(self) -> Above:
        """What is kept, by row."""
        rows, columns, products = self.kept
        order = np.lexsort((columns, -products, rows))
        rank = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
        order = order[rank < self.most]
        self.kept, self.reduced = (rows[order], columns[order], products[order]), len(order)
        return self.kept


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
