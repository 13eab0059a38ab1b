"""All products of unit vectors at once, on a GPU or on all cores: what a search without an index is."""

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE = {"cpu": 4096, "cuda": 16_384, "mps": 8192}


class Products:
    """Vectors on a device, held in half precision and multiplied in single.

    ``vectors`` is (n, dim) float16, ``norms`` (n,) float32. ``tile`` is how many rows are multiplied at once.
    """

    def __init__(self, vectors: NDArray[np.float16], norms: NDArray[np.float32], device: str = "cpu") -> None:
        self.vectors, self.norms = vectors, norms
        self.device = device
        self.tile = TILE[self.device.partition(":")[0]]
        if self.device != "cpu":
            import torch

            self._held = torch.from_numpy(vectors).to(self.device)
            self._norms = torch.from_numpy(norms).to(self.device)

    def above(
        self, rows: slice, columns: slice, cut: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Places of all products of rows with columns that are at least ``cut``, and the products."""
        if self.device == "cpu":
            products = self._unit(rows) @ self._unit(columns).T
            found = np.nonzero(products >= cut)
            return found[0] + rows.start, found[1] + columns.start, products[found]
        similarities = self._unit_there(rows) @ self._unit_there(columns).T
        places = (similarities >= cut).nonzero(as_tuple=True)
        values = similarities[places].cpu().numpy()
        return places[0].cpu().numpy() + rows.start, places[1].cpu().numpy() + columns.start, values

    def _unit(self, part: slice) -> NDArray[np.float32]:
        return np.asarray(self.vectors[part].astype(np.float32) / self.norms[part, None])

    def _unit_there(self, part: slice) -> Any:
        return self._held[part].float() / self._norms[part, None]


def settle_device(device: str) -> str:
    """What ``auto`` is here: a GPU if there is one and torch to use it, else cpu. Raises ModelError for no device."""
    if device == "cpu" or (device == "auto" and importlib.util.find_spec("torch") is None):
        return "cpu"
    from pgimgsearch.models.torch_encoder import choose_device  # torch takes seconds to import

    return choose_device(device)
