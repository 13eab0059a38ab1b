"""Similarities of many vectors at once, as the database has them: by products of rows of length one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unit_rows(vectors: NDArray[Any], storage: str) -> NDArray[np.float32]:
    """(n, dim) float32 of length one: of vectors, of packed bits (uint8), or of bits as -1 and 1."""
    if vectors.dtype == np.uint8:
        vectors = np.unpackbits(vectors, axis=1).astype(np.float32) * 2 - 1
    rows = vectors.astype(np.float32)
    length = np.sqrt(rows.shape[1]) if storage == "bit" else np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / length)


def similarity(products: NDArray[np.float32], storage: str) -> NDArray[np.float32]:
    """Products of such rows as similarities: of bits the share of equal ones, else the cosine."""
    return np.asarray((products + 1) / 2, np.float32) if storage == "bit" else products


def product_at(cut: float, storage: str) -> float:
    """The product at which a similarity is reached; the inverse of ``similarity``."""
    return 2 * cut - 1 if storage == "bit" else cut
