"""Embed prepared images in batches, into vectors that may be stored."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from pgimgsearch.concurrency import batched, ordered_map, prefetch
from pgimgsearch.embeddings.deferred_models import DeferredModels
from pgimgsearch.embeddings.loaded_model import LoadedModel, rejection_reason
from pgimgsearch.ingest.item import Item
from pgimgsearch.ingest.stopwatch import Stopwatch
from pgimgsearch.models.runtime.batches import Batches
from pgimgsearch.models.runtime.cpu_parallel import passes


def embed(items: Iterator[Item], models: DeferredModels, watch: Stopwatch) -> Generator[Item, None, None]:
    """Embed in batches, every encoder once for all models that are its outputs; order is kept.

    What comes before the first prepared image passes through, and nothing is loaded for it.
    """
    for item in items:
        if item.prepared:
            loaded = models.load()
            ahead = 2 * min(model.batch_size for model in loaded)
            yield from _embed(prefetch(_from(item, items), ahead, "prepare"), loaded, watch)
        else:
            yield item


def _from(first: Item, rest: Iterator[Item]) -> Iterator[Item]:
    """As ``itertools.chain``, and closed with it."""
    yield first
    yield from rest


def _embed(items: Iterator[Item], models: Sequence[LoadedModel], watch: Stopwatch) -> Iterator[Item]:
    encoders = [
        (Batches(models[positions[0]].encoder, models[positions[0]].batch_size), positions)
        for positions in by_encoder(models)
    ]
    size = min(model.batch_size for model in models)
    at_once = max(passes(model.encoder.device) for model in models)

    def embedded(batch: list[Item]) -> list[Item]:
        for number, (encoder, positions) in enumerate(encoders):
            chosen = [item for item in batch if number in item.prepared]
            if chosen:
                name = "+".join(models[position].stored.name for position in positions)
                with watch.time(f"embed {name}", len(chosen)):
                    outputs = encoder.embed([item.prepared[number] for item in chosen])
                    for position in positions:
                        _assign(chosen, position, models[position].storable(outputs))
        for item in batch:
            item.prepared.clear()
        return batch

    with ThreadPoolExecutor(at_once, thread_name_prefix="pass") as pool:
        for batch in ordered_map(pool, embedded, batched(items, size, lambda _: 0, 1), at_once):
            yield from batch


def by_encoder(models: Sequence[LoadedModel]) -> list[list[int]]:
    """The positions of models that share an encoder, encoder by encoder."""
    encoders: dict[int, list[int]] = {}
    for position, model in enumerate(models):
        encoders.setdefault(id(model.encoder), []).append(position)
    return list(encoders.values())


def _assign(items: Sequence[Item], position: int, vectors: NDArray[Any]) -> None:
    for item, vector in zip(items, vectors, strict=True):
        if position not in item.wanted - item.reused:
            continue
        reason = rejection_reason(vector)
        if reason:
            item.reasons[position] = reason
        else:
            item.vectors[position] = vector
