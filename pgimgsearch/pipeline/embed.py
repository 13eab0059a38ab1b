"""From prepared pictures to vectors that may be stored."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.models.encoder import unit
from pgimgsearch.pipeline.item import Item
from pgimgsearch.pipeline.register import LoadedModel
from pgimgsearch.pipeline.stages import Stopwatch, batched


def embed(items: Iterator[Item], models: Sequence[LoadedModel], watch: Stopwatch) -> Iterator[Item]:
    """Embed in batches, every model from the same decoded pictures; order is kept."""
    size = min(model.batch_size for model in models)
    for batch in batched(items, size, lambda _: 0, 1):
        for position, model in enumerate(models):
            chosen = [item for item in batch if position in item.prepared]
            if chosen:
                with watch.time(f"embed {model.stored.name}"):
                    _embed_batch(chosen, position, model)
        for item in batch:
            item.prepared.clear()
        yield from batch


def _embed_batch(items: list[Item], position: int, model: LoadedModel) -> None:
    vectors = storable(
        model.encoder.embed([item.prepared[position] for item in items]),
        model.stored.storage, normalize=model.stored.normalize,
    )  # fmt: skip
    for item, vector in zip(items, vectors, strict=True):
        reason = why_not(vector)
        if reason:
            item.reasons[position] = reason
        else:
            item.vectors[position] = vector


def storable(vectors: NDArray[Any], storage: str, *, normalize: bool) -> NDArray[Any]:
    """Vectors in the type of their column: packed bits (uint8), float16 or float32."""
    if storage == "bit":
        return np.packbits(vectors, axis=1)
    scaled = unit(vectors) if normalize else vectors
    with np.errstate(over="ignore"):
        return scaled.astype(np.float16 if storage == "halfvec" else np.float32)


def why_not(vector: NDArray[Any]) -> str | None:
    """Why a vector must not be stored: it has no direction, so it is like nothing or like everything."""
    if vector.dtype == np.uint8:
        return None
    if not np.isfinite(vector).all():
        return "the vector is not finite"
    return None if vector.any() else "the vector is zero"
