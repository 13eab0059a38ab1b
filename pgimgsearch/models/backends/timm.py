"""Models of timm: ``timm:ARCHITECTURE.TAG``, or a local file or folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgimgsearch.errors import ModelError
from pgimgsearch.models.backends import Backend
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import ModelSpec, Preprocess
from pgimgsearch.models.weights import download as files
from pgimgsearch.models.weights.load_state import load_strictly, loading, read_state_dict

if TYPE_CHECKING:
    from pgimgsearch.models.reference import Reference
    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder


BACKEND = Backend(package="timm", prefix="timm", on_torch=True)


def origin(spec: ModelSpec) -> files.Origin:
    """Where the weights of a timm tag are."""
    import timm

    if not timm.is_model(spec.checkpoint):
        raise ModelError(
            f"timm has no model {spec.checkpoint}",
            hint="list them: python -c 'import timm; print(timm.list_models())'",
        )
    config = timm.get_pretrained_cfg(spec.checkpoint, allow_unregistered=True)
    if config is None or not config.hf_hub_id:
        raise ModelError(
            f"timm has no weights for {spec.checkpoint}",
            hint="give a tag that has some (timm.list_pretrained()), or --weights PATH",
        )
    repository = config.hf_hub_id.rstrip("/")
    return files.Origin(repository, (("model.safetensors",), ("pytorch_model.bin",)), ("config.json",), spec.revision)


def load(spec: ModelSpec, placement: Placement) -> TorchEncoder:
    """Load without the classifier; a checkpoint may hold one, which is left out."""
    import timm

    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder, TorchModel

    with loading(spec):
        path = files.local(spec) or files.download(origin(spec))
        architecture, weights, config = spec.checkpoint, path, None
        if path.is_dir():
            weights = files.first(path, ("model.safetensors", "pytorch_model.bin"))
            if spec.weights:
                architecture, config = _described(path, spec.checkpoint)
        if not timm.is_model(architecture):
            raise ModelError(
                f"timm has no model {architecture}", hint="name the architecture: --model timm:NAME --weights PATH"
            )
        network, output = create(architecture, config)
        classifier = network.pretrained_cfg.get("classifier") or ()
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        load_strictly(network, read_state_dict(weights), spec.name, drop=[f"{head}." for head in heads])
    towers = TorchModel(network, lambda pixels: {output: network(pixels)}, preprocess_of(network),
                    revision=files.revision_of(path))  # fmt: skip
    return TorchEncoder(spec, towers, placement)


def create(architecture: str, config: dict[str, Any] | None = None) -> tuple[Any, str]:
    """A network without classifier and without weights, and what its vector is."""
    import timm

    # timm averages the patches of DINOv3's transformers by default; their paper's vector is the class token
    dinov3 = "dinov3" in architecture and architecture.startswith("vit")
    pooling = {"global_pool": "token"} if dinov3 else {}
    network = timm.create_model(architecture, num_classes=0, pretrained_cfg_overlay=config, **pooling)
    return network, "cls" if getattr(network, "global_pool", None) == "token" else "pool"


def preprocess_of(network: object) -> Preprocess:
    """What timm's own eval transform of this network does."""
    from timm.data import resolve_model_data_config

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


def _described(folder: Path, otherwise: str) -> tuple[str, dict[str, Any] | None]:
    """The architecture, and what its checkpoint says of preprocessing, of a folder in the layout of the hub."""
    file = folder / "config.json"
    if not file.exists():
        return otherwise, None
    config = json.loads(file.read_text())
    known = {"input_size", "test_input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "classifier"}
    own = {key: value for key, value in config.get("pretrained_cfg", {}).items() if key in known}
    return config.get("architecture", otherwise), own or None


def reference(spec: ModelSpec) -> Reference:
    import timm
    import torch

    from pgimgsearch.models.reference import Reference

    path = files.local(spec) or files.download(origin(spec))
    file = files.first(path, ("model.safetensors", "pytorch_model.bin")) if path.is_dir() else path
    network = timm.create_model(
        spec.checkpoint, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(file)}
    ).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))

    def embed(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        features = network.forward_features(pixels)
        if "dinov3" in spec.checkpoint and features.ndim == 3:  # the paper's vector is the class token
            return {"cls": features[:, 0]}
        name = "cls" if getattr(network, "global_pool", None) == "token" else "pool"
        return {name: network.forward_head(features, pre_logits=True)}

    return Reference("timm's model and its eval transform", lambda p: torch.stack([transform(x) for x in p]), embed)
