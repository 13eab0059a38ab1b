"""What every torch backend shares: the device, batches, normalised text, and the hash of the weights."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import unit
from pgimgsearch.models.fingerprint import fingerprint
from pgimgsearch.models.preprocess import to_array
from pgimgsearch.models.spec import ModelSpec, Preprocess


@dataclass(frozen=True)
class Towers:
    """What a backend finds: a network in eval mode, how it sees and reads, and how its pictures are prepared.

    ``image`` takes (n, 3, height, width) and ``text`` a list of strings; both give (n, dim), not normalised.
    """

    network: torch.nn.Module
    image: Callable[[torch.Tensor], torch.Tensor]
    preprocess: Preprocess
    text: Callable[[list[str]], torch.Tensor] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    revision: str | None = None


class TorchEncoder:
    """An Encoder around two towers."""

    def __init__(self, spec: ModelSpec, towers: Towers, device: str) -> None:
        self.device = device
        self.towers = towers
        self.logit_scale, self.logit_bias = towers.logit_scale, towers.logit_bias
        self.preprocess = towers.preprocess.as_dict()
        towers.network.to(device).eval().requires_grad_(False)
        height, width = towers.preprocess.size
        dim = self.embed([np.zeros((3, height, width), dtype=np.float32)]).shape[1]
        self.spec = replace(spec, dim=dim, text=towers.text is not None, revision=towers.revision or spec.revision)
        self.fingerprint = fingerprint(
            _weights(towers.network.named_parameters(), towers.network.named_buffers()),
            self.preprocess,
            spec.output,
        )

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """(3, height, width) float32."""
        return to_array(image, self.towers.preprocess)

    @torch.inference_mode()
    def embed(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """(n, dim) float32."""
        batch = torch.from_numpy(np.stack(prepared)).to(self.device)
        return np.asarray(self.towers.image(batch).float().cpu().numpy())

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, normalised."""
        if self.towers.text is None:
            raise ModelError(
                f"model {self.spec.name} cannot read text", hint="use one that can, for example clip-vit-b-32"
            )
        return unit(self.towers.text(list(texts)).float().cpu().numpy())


def choose_device(device: str) -> str:
    """``auto`` is the first of cuda, mps and cpu that is there; a device that is not there is an error."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"there is no device {device} here: {str(error).splitlines()[0]}",
            hint="use --device auto or --device cpu",
        ) from error
    return device


def _weights(*groups: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, memoryview]]:
    for group in groups:
        for name, tensor in group:
            flat = tensor.detach().cpu().contiguous().flatten()
            yield (f"{name} {tuple(tensor.shape)} {tensor.dtype}", flat.view(torch.uint8).numpy().data)
