"""What the libraries' own documented calls give, for comparison with ours: none of our preprocessing or towers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.models.backends import backend_module
from pgimgsearch.models.canary import images as drawn
from pgimgsearch.models.encoder import Encoder, Placement, unit
from pgimgsearch.models.load import load
from pgimgsearch.models.spec import ModelSpec

Images = Sequence[Image.Image]
TEXTS = ("a red dress", "A photo of TWO dogs, running!", "ein grünes Fahrrad", "猫")


@dataclass(frozen=True)
class Reference:
    """A library's own way: ``pixels`` is (n, 3, height, width), ``embed`` output -> (n, dim), ``texts`` (n, dim)."""

    how: str
    pixels: Callable[[Images], torch.Tensor]
    embed: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    texts: Callable[[Sequence[str]], torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far ours is from a reference: lowest cosines, and the largest difference of a pixel in grey levels."""

    how: str
    pictures: int
    cosines: dict[str, float]
    grey_levels: float


def compare(spec: ModelSpec, pictures: Images | None = None, texts: Sequence[str] = TEXTS) -> Comparison | None:
    """Load a model both ways, in fp32 on the CPU, and compare; None where no library has it."""
    backend = backend_module(spec.backend)
    if not hasattr(backend, "reference"):
        return None
    return compare_loaded(
        load(spec, Placement("cpu", "fp32", "torch")), backend.reference(spec), pictures or drawn(), texts
    )


@torch.inference_mode()
def compare_loaded(ours: Encoder, reference: Reference, pictures: Images, texts: Sequence[str]) -> Comparison:
    """Compare a loaded model with a reference."""
    prepared = [ours.prepare(picture) for picture in pictures]
    theirs = reference.pixels(pictures)
    std = np.asarray(ours.preprocess["std"], np.float32)[None, :, None, None]
    grey = float(np.abs((np.stack(prepared) - theirs.numpy()) * std * 255).max())
    vectors = ours.embed(prepared)
    cosines = {
        output: _lowest(vectors[output], embedded.float().numpy())
        for output, embedded in reference.embed(theirs).items()
    }
    if reference.texts is not None and texts:
        cosines["text"] = _lowest(ours.embed_text(texts), reference.texts(texts).float().numpy())
    return Comparison(reference.how, len(pictures), cosines, grey)


def _lowest(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float((unit(ours) * unit(theirs)).sum(1).min())
