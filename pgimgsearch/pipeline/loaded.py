"""A model of the database with its network: what comes out of a forward pass, as it is stored or asked with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import UsageError
from pgimgsearch.models.encoder import Encoder, cannot_read, unit
from pgimgsearch.models.reduction import Reduction

PLAIN_TEMPLATE = "{}"


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
        vectors = self.vectors(outputs)
        if self.stored.storage == "bit":
            return np.packbits(vectors, axis=1)
        with np.errstate(over="ignore"):
            return vectors.astype(np.float16 if self.stored.storage == "halfvec" else np.float32)

    def embed_texts(self, texts: Sequence[str], template: str = PLAIN_TEMPLATE) -> NDArray[np.float32]:
        """(n, dim) float32, normalised: of each text in each line of ``template``, averaged."""
        if not self.stored.has_text:
            raise cannot_read(self.stored.name)
        forms = [self.encoder.embed_text([line.replace("{}", text) for text in texts]) for line in template.split("\n")]
        vectors = unit(np.mean(forms, axis=0, dtype=np.float32))
        return unit(self.reduction.apply(vectors)) if self.reduction is not None else vectors

    def with_batch_size(self, size: int) -> "LoadedModel":
        """The same in other batches."""
        return replace(self, batch_size=size)


def template_of(lines: Sequence[str] | None) -> str:
    """Several templates as one text, as it is stored; raises UsageError for one without a place for the text."""
    for line in lines or ():
        if "{}" not in line:
            raise UsageError(f'the template "{line}" has no place for the text', hint='write {}: "a photo of a {}"')
    return "\n".join(lines) if lines else PLAIN_TEMPLATE


def why_not(vector: NDArray[Any]) -> str | None:
    """Why a vector must not be stored: it has no direction, so it is like nothing or like everything."""
    if vector.dtype == np.uint8:
        return None
    if not np.isfinite(vector).all():
        return "the vector is not finite"
    return None if vector.any() else "the vector is zero"
