"""Models of OpenCLIP: ``open_clip:ARCHITECTURE/TAG``, or a local folder or file."""

from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg

from pgimgsearch.errors import ModelError
from pgimgsearch.models.spec import ModelSpec, Preprocess
from pgimgsearch.models.torch_encoder import TorchEncoder, Towers, choose_device
from pgimgsearch.models.weights import load_strictly, loading, read_state_dict


def load(spec: ModelSpec, device: str) -> TorchEncoder:
    """Load both towers; the activation comes from the tag's own config, where the library only warns."""
    device = choose_device(device)
    with loading(spec):
        if spec.weights and Path(spec.weights).is_dir():
            name = f"local-dir:{spec.weights}"
            network = open_clip.create_model(name)
        else:
            name, _, tag = spec.checkpoint.partition("/")
            network = _create(spec, name, tag)
        tokenizer = open_clip.get_tokenizer(name)
    bias = getattr(network, "logit_bias", None)

    def text(texts: list[str]) -> torch.Tensor:
        encoded: torch.Tensor = network.encode_text(tokenizer(texts).to(device))
        return encoded

    towers = Towers(
        network, network.encode_image, preprocess_of(network), text,
        logit_scale=network.logit_scale.detach().exp().item(),
        logit_bias=None if bias is None else bias.detach().item(),
    )  # fmt: skip
    return TorchEncoder(spec, towers, device)


def _create(spec: ModelSpec, name: str, tag: str) -> Any:
    if name not in open_clip.list_models():
        raise ModelError(
            f"open_clip has no architecture {name}",
            hint="write open_clip:ARCHITECTURE/TAG, for example open_clip:ViT-B-32/laion2b_s34b_b79k",
        )
    config = get_pretrained_cfg(name, tag) if tag else None
    if not config and not spec.weights:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none: give --weights PATH"
        raise ModelError(f"open_clip has no weights {tag or '(no tag)'} for {name}", hint=f"tags: {tags}")
    quick = bool((config or {}).get("quick_gelu", False))
    if not spec.weights:
        return open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick)
    network = open_clip.create_model(name, force_quick_gelu=quick)
    load_strictly(network, read_state_dict(Path(spec.weights)), spec.name)
    return network


def preprocess_of(network: Any) -> Preprocess:
    """What open_clip's own eval transform of this network does."""
    config = open_clip.get_model_preprocess_cfg(network)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if config["resize_mode"] not in {"shortest", "squash"}:
        raise ModelError(f"resize mode {config['resize_mode']} is not supported", hint="use another tag")
    return Preprocess(
        size=(height, width),
        resize=config["resize_mode"],
        resize_to=height,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
