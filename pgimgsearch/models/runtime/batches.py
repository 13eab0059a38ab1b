"""Batches that fit: halved when the memory does not hold them, and found by measurement on a GPU."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import Encoder

LARGEST = 1024
WORTHWHILE = 1.1  # a doubled batch has to be faster by this


class Batches:
    """Runs an encoder over any number of images in batches; ``size`` only ever shrinks."""

    def __init__(self, encoder: Encoder, size: int) -> None:
        self.encoder, self.size = encoder, size

    def embed(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Output -> (n, dim), as the encoder gives it; raises ModelError where even one image does not fit."""
        parts: list[dict[str, NDArray[Any]]] = []
        start = 0
        while start < len(prepared):
            size = self.size  # another thread may shrink it meanwhile
            try:
                parts.append(self.encoder.embed(prepared[start : start + size]))
            except Exception as error:  # ONNX Runtime has classes of its own
                if not is_out_of_memory(error):
                    raise
                self._shrink(size, error)
            else:
                start += size
        return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}

    def _shrink(self, failed: int, error: Exception) -> None:
        if failed == 1:
            raise ModelError(
                f"{self.encoder.spec.name} does not fit into the memory of {self.encoder.device}",
                hint="use a smaller model, --dtype bf16, or --device cpu",
            ) from error
        self.size = min(self.size, failed // 2)
        _release()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, CUDA or ONNX Runtime say that memory is short."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        said in text for said in ("out of memory", "can't allocate memory", "failed to allocate memory", "bad_alloc")
    )


def find_size(encoder: Encoder, start: int) -> int:
    """The batch from which doubling it makes a GPU no faster; on a CPU ``start``, as larger ones win nothing there."""
    if encoder.device.partition(":")[0] not in {"cuda", "mps"}:
        return start
    from PIL import Image

    height, width = encoder.preprocess["size"]
    picture = encoder.prepare(Image.new("RGB", (width, height)))
    best, best_rate = 1, 0.0
    size = max(1, start // 4)
    while size <= LARGEST:
        try:
            encoder.embed([picture] * size)  # warms up
            begin = time.perf_counter()
            encoder.embed([picture] * size)
            rate = size / (time.perf_counter() - begin)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _release()
            break
        if rate < best_rate * WORTHWHILE:
            break
        best, best_rate, size = size, rate, size * 2
    return best


def _release() -> None:
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
