"""Fewer dimensions: by principal components of the user's own vectors, whitened or not, or by truncation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import unit

Kind = Literal["pca", "whiten", "truncate"]
SMALLEST_VARIANCE = 1e-6  # of the largest: directions below it are noise, which whitening would blow up


@dataclass(frozen=True, slots=True)
class Reduction:
    """A linear map of normalised vectors: ``(v - mean) @ matrix.T``. ``matrix`` is (dim, full), ``mean`` (full,)."""

    kind: Kind
    matrix: NDArray[np.float32]
    mean: NDArray[np.float32]

    @property
    def dim(self) -> int:
        """The dimension of what comes out."""
        return int(self.matrix.shape[0])

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, full) to (n, dim), of images and texts alike; the result is not normalised."""
        return np.asarray((unit(vectors) - self.mean) @ self.matrix.T, dtype=np.float32)

    def digest_parts(self) -> list[tuple[str, bytes]]:
        """What makes it different from another, for a fingerprint."""
        return [("kind", self.kind.encode()), ("matrix", self.matrix.tobytes()), ("mean", self.mean.tobytes())]


def check_dim(full: int, dim: int) -> None:
    """Raise ModelError where a dimension is no reduction."""
    if not 0 < dim < full:
        raise ModelError(f"cannot reduce {full} dimensions to {dim}", hint=f"give --dim a number from 1 to {full - 1}")


def fit(vectors: NDArray[np.float32], dim: int, kind: Kind) -> Reduction:
    """Fit on (n, full) vectors. Raises ModelError where ``dim`` is too large; whitening may keep all dimensions.

    ``pca`` keeps the directions that hold most of the inner products, about the origin, as cosines are; ``whiten``
    takes the mean off first and gives every direction the same variance, as retrieval papers do; ``truncate`` keeps the
    first numbers, which is right for Matryoshka models only.
    """
    full = vectors.shape[1]
    if kind != "whiten" or dim != full:
        check_dim(full, dim)
    none = np.zeros(full, dtype=np.float32)
    if kind == "truncate":
        return Reduction(kind, np.eye(dim, full, dtype=np.float32), none)
    data = unit(vectors).astype(np.float64)
    mean = data.mean(0) if kind == "whiten" else np.zeros(full)
    values, directions = np.linalg.eigh((data - mean).T @ (data - mean) / len(data))
    order = np.argsort(values)[::-1][:dim]
    matrix = directions[:, order].T
    if kind == "whiten":
        matrix = matrix / np.sqrt(np.maximum(values[order], values[order[0]] * SMALLEST_VARIANCE))[:, None]
    return Reduction(kind, matrix.astype(np.float32), mean.astype(np.float32))


def recall_kept(vectors: NDArray[np.float32], reduction: Reduction, queries: int, k: int = 10) -> float:
    """The share of the true ``k`` nearest neighbours, by cosine of the full vectors, that the reduced ones find too.

    The first ``queries`` rows ask, all rows are searched.
    """
    full, reduced = unit(vectors), unit(reduction.apply(vectors))
    asked = np.arange(queries)
    k = min(k, len(full) - 1)

    def nearest(of: NDArray[np.float32]) -> NDArray[np.intp]:
        similarities = of[asked] @ of.T
        similarities[np.arange(len(asked)), asked] = -np.inf  # an image is no neighbour of itself
        return np.argpartition(-similarities, k - 1, axis=1)[:, :k]

    pairs = zip(nearest(full), nearest(reduced), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs]))
