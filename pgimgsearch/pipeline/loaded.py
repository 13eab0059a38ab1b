"""A model of the database with its network: what comes out of a forward pass, as it is stored or asked with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.store import StoredModel
from pgimgsearch.models.encoder import Encoder, cannot_read, unit
from pgimgsearch.models.reduction import Reduction

TEXTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model of the database, ready to embed. Models that are outputs of one network share their encoder."""

    stored: StoredModel
    encoder: Encoder
    batch_size: int
    reduction: Reduction | None = None

    def vectors(self, outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """(n, dim) float32 of a forward pass, reduced and scaled as this model wants; bits stay bits, 0 or 1."""
        vectors = outputs[self.stored.output]
        if self.stored.storage == "bit":
            return vectors
        if self.reduction is not None:
            vectors = self.reduction.apply(vectors)
        return unit(vectors) if self.stored.normalize else vectors

    def storable(self, outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The same in the type of the column: packed bits (uint8), float16 or float32."""
        return as_column(self.vectors(outputs), self.stored.storage)

    def embed_texts(self, texts: Sequence[str], template: str = "{}") -> NDArray[np.float32]:
        """(n, dim) float32, normalised: of each text in each line of ``template``, averaged."""
        if not self.stored.has_text:
            raise cannot_read(self.stored.name)
        forms = [self._embed_texts([line.replace("{}", text) for text in texts]) for line in template.split("\n")]
        vectors = unit(np.mean(forms, axis=0, dtype=np.float32))
        return unit(self.reduction.apply(vectors)) if self.reduction is not None else vectors

    def _embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        starts = range(0, len(texts), TEXTS_AT_ONCE)
        return np.concatenate([self.encoder.embed_text(texts[start : start + TEXTS_AT_ONCE]) for start in starts])

    def with_batch_size(self, size: int) -> "LoadedModel":
        """The same in other batches."""
        return replace(self, batch_size=size)


def as_column(vectors: NDArray[Any], storage: str) -> NDArray[Any]:
    """Vectors in the type of their column: packed bits (uint8), float16 or float32."""
    if storage == "bit":
        return np.packbits(vectors, axis=1)
    with np.errstate(over="ignore"):
        return vectors.astype(np.float16 if storage == "halfvec" else np.float32)


def why_not(vector: NDArray[Any]) -> str | None:
    """Why a vector must not be stored: it has no direction, so it is like nothing or like everything."""
    if vector.dtype == np.uint8:
        return None
    if not np.isfinite(vector).all():
        return "the vector is not finite"
    return None if vector.any() else "the vector is zero"
