"""Models of timm: ``timm:ARCHITECTURE.TAG``, or a local file or folder."""

import json
import math
from pathlib import Path

import timm
from timm.data import resolve_model_data_config

from pgimgsearch.errors import ModelError
from pgimgsearch.models.spec import ModelSpec, Preprocess
from pgimgsearch.models.torch_encoder import TorchEncoder, Towers, choose_device
from pgimgsearch.models.weights import load_strictly, loading, read_state_dict

POOLING = {"cls": {"global_pool": "token"}, "pool": {}}


def load(spec: ModelSpec, device: str) -> TorchEncoder:
    """Load without the classifier; a local checkpoint may hold one, which is left out."""
    device = choose_device(device)
    with loading(spec):
        path = Path(spec.weights) if spec.weights else None
        architecture, weights = _local_folder(path) if path and path.is_dir() else (spec.checkpoint, path)
        if not timm.is_model(architecture):
            raise ModelError(
                f"timm has no model {architecture}",
                hint="list them: python -c 'import timm; print(timm.list_models())'",
            )
        network = timm.create_model(architecture, pretrained=weights is None, num_classes=0, **POOLING[spec.output])
        if weights is not None:
            classifier = network.pretrained_cfg.get("classifier") or ()
            heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
            load_strictly(network, read_state_dict(weights), spec.name, drop=[f"{head}." for head in heads])
    return TorchEncoder(spec, Towers(network, network, preprocess_of(network)), device)


def preprocess_of(network: object) -> Preprocess:
    """What timm's own eval transform of this network does."""
    config = resolve_model_data_config(network)
    _, height, width = config["input_size"]
    if config["crop_mode"] not in {"center", "squash"} or (height != width and config["crop_mode"] == "center"):
        raise ModelError(
            f"crop mode {config['crop_mode']} at {height} x {width} is not supported", hint="use another tag"
        )
    return Preprocess(
        size=(height, width),
        resize="squash" if config["crop_mode"] == "squash" else "shortest",
        resize_to=math.floor(height / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _local_folder(folder: Path) -> tuple[str, Path]:
    """The architecture and the weights of a folder in the layout of the hub."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return config["architecture"], folder / name
    raise ModelError(f"{folder} holds no weights", hint="it should hold model.safetensors or pytorch_model.bin")
