"""The one thing the rest of the program knows of a model: an Encoder, loaded on demand."""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models.spec import ModelSpec
from pgimgsearch.models.weights import settle_hub_access

# backend -> (module of ours, the package it needs)
BACKENDS = {
    "timm": ("pgimgsearch.models.backends.timm", "timm"),
    "open_clip": ("pgimgsearch.models.backends.open_clip", "open_clip"),
    "transformers": ("pgimgsearch.models.backends.transformers", "transformers"),
    "pdq": ("pgimgsearch.models.backends.pdq", "pdqhash"),
    "palette": ("pgimgsearch.models.backends.palette", "numpy"),
}


class SkippedPicture(Exception):  # noqa: N818  (a verdict on one picture, not an error)
    """This picture has no useful vector under this model; the message says why."""


class Encoder(Protocol):
    """A loaded model.

    ``prepare`` runs in several threads at once, on upright RGB pictures; ``embed`` and ``embed_text`` run in one.
    ``spec`` is complete: the true dimension, and the revision that was loaded.
    """

    spec: ModelSpec
    fingerprint: str
    preprocess: dict[str, Any]
    device: str
    logit_scale: float | None
    logit_bias: float | None

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        """What ``embed`` takes of one picture; raises SkippedPicture."""

    def embed(self, prepared: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """(n, dim): float32, not yet normalised; or uint8 bits, 0 or 1, for a hash."""

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, normalised; raises ModelError for a model without a text tower."""


def load(spec: ModelSpec, device: str = "auto") -> Encoder:
    """Load a model. Raises ModelError when a package, the weights or the network is missing."""
    module, package = BACKENDS[spec.backend]
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"model {spec.name} needs the package {package}, which is not installed",
            hint="run: pip install pgimgsearch (this host has only requirements-core.txt)",
        )
    if package not in {"pdqhash", "numpy"}:
        settle_hub_access()
    encoder: Encoder = importlib.import_module(module).load(spec, device)
    if spec.dim and encoder.spec.dim != spec.dim:
        raise ModelError(
            f"{spec.checkpoint} gives vectors of dimension {encoder.spec.dim}, {spec.name} has {spec.dim}",
            hint="the weights belong to another model: check the checkpoint",
        )
    return encoder


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length one; a zero row stays zero and a non-finite one non-finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        scaled = np.divide(vectors, lengths, out=vectors.astype(np.float64), where=lengths != 0)
    return np.asarray(scaled, dtype=np.float32)
