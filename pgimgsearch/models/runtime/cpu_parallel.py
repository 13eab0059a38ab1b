"""Batches on a CPU: small pieces, each the work of one core.

A pass that all cores share waits at every layer for the slowest, which decodes images meanwhile; cores with pieces of
their own wait for nobody. And while a piece's widest layer stays below 32 MB, malloc hands out the same memory again;
from there on the system maps and clears it anew for every layer. Larger ones share what a product does once with its
weights: of 2 to 32 images the fastest gave 10 to 15 MB there, which are 3 of MobileNetV2, 4 of ResNet-50 and DINOv2,
16 of CLIP B/32. Measured on 2 cores against one pass of 64 images over both: CLIP B/32 1.2 times as fast,
ResNet-50 2.4 and MobileNetV2 4 times (torch, fp32); int8 on ONNX Runtime 1.3.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

R = TypeVar("R")
PIECE_BYTES = 15 << 20  # of the widest layer of a piece
BYTES_A_PIXEL = 64  # of that layer where a network does not tell: 64 channels at half the width and height, in fp32


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lanes() -> int:
    """The cores that networks may use: OMP_NUM_THREADS, as for the libraries themselves, or all."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(told)) if told.isdigit() and int(told) else cores()


def passes(device: str) -> int:
    """The passes that may be under way at once: on CUDA one is laid out and copied while another computes."""
    return 2 if device.startswith("cuda") else 1


def usual_layer_bytes(height: int, width: int) -> int:
    """Of the widest layer for one image, where a network does not tell."""
    return BYTES_A_PIXEL * height * width


def worthwhile(pictures: Sequence[NDArray[Any]]) -> bool:
    """Whether there is a piece for every core; else all of them together are faster at what there is."""
    return 1 < lanes() <= len(pictures)


def embed(
    forward: Callable[[Sequence[NDArray[Any]]], dict[str, R]], pictures: Sequence[NDArray[Any]], layer_bytes: int
) -> dict[str, NDArray[Any]]:
    """Output -> (n, dim), of ``forward`` over pieces of (3, height, width) arrays; it has to keep to one thread.

    ``layer_bytes`` is what its widest layer gives for one image.
    """
    rounds = -(-len(pictures) // (lanes() * max(1, PIECE_BYTES // layer_bytes)))
    pieces = min(len(pictures), rounds * lanes())
    bounds = [len(pictures) * number // pieces for number in range(pieces + 1)]
    chosen = [pictures[start:end] for start, end in pairwise(bounds)]
    parts = list(_pool().map(forward, chosen))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(lanes(), thread_name_prefix="lane")
