"""SSCD, a copy detector: ResNet-50 with GeM pooling and a linear layer (Pizzi et al., arXiv 2202.10261)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile, is_zipfile

from pgimgsearch.errors import ModelError
from pgimgsearch.models.backends import REBUILT, Backend
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import ModelSpec
from pgimgsearch.models.weights import download as files
from pgimgsearch.models.weights.load_state import load_strictly, loading, read_state_dict

if TYPE_CHECKING:
    import torch

    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder

BACKEND = Backend(package="torchvision", on_torch=True, needs_preprocessing=True, no_reference=REBUILT)

GEM_POWER = 3.0
SMALLEST = 1e-6


def origin(spec: ModelSpec) -> files.Origin:
    """Meta's file."""
    return files.Origin(spec.checkpoint)


def load(spec: ModelSpec, placement: Placement) -> TorchEncoder:
    """Load the state dict in torchvision's layout; TorchScript, which is code, only where the user trusts it."""
    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder, TorchModel

    with loading(spec):
        path = files.local(spec) or files.download(origin(spec))
        if _is_torchscript(path):
            network = _trusted(spec, path)
        else:
            state = {name.removeprefix("backbone."): tensor for name, tensor in read_state_dict(path).items()}
            network = create(state["fc.weight"].shape[0] if "fc.weight" in state else spec.dim)
            load_strictly(network, state, spec.name)
    assert spec.preprocess is not None, "the catalog gives it"
    return TorchEncoder(spec, TorchModel(network, descriptor(network), spec.preprocess), placement)


def create(dim: int) -> Any:
    """The network without weights."""
    from torchvision.models import resnet50

    network = resnet50(weights=None, num_classes=dim)
    network.avgpool = _generalized_mean()
    return network


def _generalized_mean() -> torch.nn.Module:
    """The p-mean over height and width: (n, c, h, w) to (n, c, 1, 1)."""
    import torch

    class GeneralizedMean(torch.nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            powered = maps.clamp(min=SMALLEST).pow(GEM_POWER)
            return powered.mean(dim=(2, 3), keepdim=True).pow(1 / GEM_POWER)

    return GeneralizedMean()


def descriptor(network: Any) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """How it sees."""
    return lambda pixels: {"descriptor": network(pixels)}


def _is_torchscript(path: Path) -> bool:
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _trusted(spec: ModelSpec, path: Path) -> Any:
    import torch

    if not spec.trust:
        raise ModelError(
            f"{path} is TorchScript: loading it runs the code it holds",
            hint="take the torchvision weights (sscd_disc_mixup.torchvision.pt), or say --trust if you trust this file",
        )
    return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
