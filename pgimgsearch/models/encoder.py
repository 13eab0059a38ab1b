"""The one thing the rest of the program knows of a model: an Encoder, loaded on demand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models.spec import ModelSpec


class SkippedImage(Exception):  # noqa: N818  (a verdict on one image, not an error)
    """This image has no useful vector under this model; the message says why."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model runs, which is no part of its fingerprint.

    ``device`` is auto, cpu, mps, cuda (every GPU that is visible), cuda:1 or cuda:0,3; ``dtype`` auto, fp32, bf16, fp16
    or int8; ``runtime`` auto (ONNX Runtime on a CPU, where the export agrees with torch), torch or onnx.
    """

    device: str = "auto"
    dtype: str = "auto"
    runtime: str = "auto"


class Encoder(Protocol):
    """A loaded network.

    ``prepare`` runs in several threads at once, on upright RGB images, ``embed_text`` in one, and ``embed`` in two
    where a network of the run is on CUDA.
    ``faster_dtypes`` are the precisions in which it would run faster here, with nearly the same vectors.
    ``spec`` is complete, with the output chosen and the revision that was loaded. ``dims`` is output -> dimension;
    texts meet the first output, where the network reads any. ``text_context`` is how many tokens of a text are read, 0
    where there is no limit.
    """

    spec: ModelSpec
    dims: Mapping[str, int]
    preprocess: dict[str, Any]
    device: str
    dtype: str
    runtime: str
    faster_dtypes: Sequence[str]
    reads_text: bool
    text_context: int
    logit_scale: float | None
    logit_bias: float | None

    def fingerprint(self, output: str) -> str:
        """What two vectors must share to be comparable: weights, preprocessing and output."""

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        """What ``embed`` takes of one image; raises SkippedImage."""

    def embed(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One forward pass. Output -> (n, dim): float32, not yet normalised; or uint8 bits, 0 or 1, for a hash."""

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, normalised; raises ModelError for a model without a text tower."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, those beyond ``text_context`` too."""


def cannot_read(name: str) -> ModelError:
    """The error of a model without a text tower, with models that have one."""
    from pgimgsearch.models.catalog import CATALOG

    able = [spec.name for spec in CATALOG if spec.text]
    return ModelError(f"model {name} cannot read text", hint=f"models that can: {', '.join(able)}")


def check_outputs(spec: ModelSpec, encoder: Encoder) -> None:
    """Raise ModelError unless a network gives what a spec promises; that of another family or size does not."""
    output = encoder.spec.output if spec.output == "auto" else spec.output
    for wanted, dim in {output: spec.dim, **spec.also}.items():
        if wanted not in encoder.dims:
            raise ModelError(
                f"{spec.name} has no output {wanted}: its checkpoint gives {', '.join(encoder.dims)}",
                hint="choose one of these with --output, or check that checkpoint and model belong together",
            )
        if dim and encoder.dims[wanted] != dim:
            raise ModelError(
                f"the checkpoint gives vectors of dimension {encoder.dims[wanted]}, {spec.name} has {dim}",
                hint="the weights belong to another model: check the checkpoint",
            )


def reads_text(encoder: Encoder, output: str) -> bool:
    """Whether texts meet this output: the first one, of a network with a text tower."""
    return encoder.reads_text and output == next(iter(encoder.dims))


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length one; a zero row stays zero and a non-finite one non-finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        scaled = np.divide(vectors, lengths, out=vectors.astype(np.float64), where=lengths != 0)
    return np.asarray(scaled, dtype=np.float32)
