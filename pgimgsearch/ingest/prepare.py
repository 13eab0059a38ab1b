"""From the bytes of an image to what each network takes of it."""

import time
from collections.abc import Callable, Sequence

from PIL.Image import Image

from pgimgsearch.embeddings.deferred_models import DeferredModels
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.ingest.embed import by_encoder
from pgimgsearch.ingest.item import Item
from pgimgsearch.models.encoder import SkippedImage
from pgimgsearch.sources.decode import decode
from pgimgsearch.sources.limits import ImageLimits
from pgimgsearch.sources.memory_budget import memory_budget


def prepare(item: Item, models: DeferredModels, limits: ImageLimits) -> float:
    """Decode once, prepare for every encoder that is wanted, and free the pixels.

    Returns the seconds that it waited for networks to be loaded; raises what loading them raises.
    """
    waited = 0.0
    with memory_budget().share() as reserve:
        image = _decoded(item, limits, reserve)
        if image is not None and item.wanted - item.reused:
            start = time.perf_counter()
            loaded = models.load()
            waited = time.perf_counter() - start
            _prepare(item, image, loaded)
    item.data = b""
    return waited


def _decoded(item: Item, limits: ImageLimits, reserve: Callable[[int], None]) -> Image | None:
    try:
        image, item.image = decode(item.data, limits, reserve)
    except Exception as error:  # hostile bytes raise anything; MemoryError included
        item.fail(error)
        return None
    return image


def _prepare(item: Item, image: Image, models: Sequence[LoadedModel]) -> None:
    for number, positions in enumerate(by_encoder(models)):
        wanted = [position for position in positions if position in item.wanted - item.reused]
        if not wanted:
            continue
        try:
            item.prepared[number] = models[wanted[0]].encoder.prepare(image)
        except SkippedImage as why:
            item.reasons |= dict.fromkeys(wanted, str(why))
        except Exception as error:
            item.prepared.clear()
            item.fail(error)
            return
