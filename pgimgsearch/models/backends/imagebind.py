"""ImageBind's image and text towers: OpenCLIP's ViT-H/14 with other norms and heads (arXiv 2305.05665).

Its own package cannot be installed from a registry; its state dict is renamed for open_clip's network instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pgimgsearch.errors import ModelError
from pgimgsearch.models.backends import REBUILT, Backend
from pgimgsearch.models.backends.open_clip import count_tokens, portable
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import ModelSpec
from pgimgsearch.models.weights import download as files
from pgimgsearch.models.weights.load_state import load_strictly, loading, read_state_dict

if TYPE_CHECKING:
    import torch

    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder

BACKEND = Backend(package="open_clip", on_torch=True, needs_preprocessing=True, no_reference=REBUILT)

VISION_HEAD_WIDTH, TEXT_HEAD_WIDTH = 80, 64  # 1280 / 16 and 1024 / 16
LAYER_NORM_EPS = 1e-6  # open_clip: 1e-5
OTHER_SENSES = re.compile(r"modality_\w+\.(audio|depth|thermal|imu)\.")

BLOCK = {
    "attn.": "attn.", "norm_1.": "ln_1.", "norm_2.": "ln_2.", "mlp.fc1.": "mlp.c_fc.", "mlp.fc2.": "mlp.c_proj.",
}  # fmt: skip
RENAMED = {
    "modality_trunks.vision.pre_transformer_layer.0.": "visual.ln_pre.",
    "modality_heads.vision.0.": "visual.ln_post.",
    "modality_preprocessors.text.token_embedding.": "token_embedding.",
    "modality_heads.text.proj.0.": "ln_final.",
}

RESHAPED: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "modality_preprocessors.vision.cls_token": ("visual.class_embedding", lambda token: token.flatten()),
    # a still image is a film of two equal frames: their kernels add up
    "modality_preprocessors.vision.rgbt_stem.proj.1.weight": ("visual.conv1.weight", lambda kernel: kernel.sum(2)),
    "modality_preprocessors.vision.pos_embedding_helper.pos_embed": ("visual.positional_embedding", lambda p: p[0]),
    "modality_heads.vision.2.weight": ("visual.proj", lambda weight: weight.t()),
    "modality_preprocessors.text.pos_embed": ("positional_embedding", lambda positions: positions[0]),
    "modality_heads.text.proj.1.weight": ("text_projection", lambda weight: weight.t()),
    "modality_postprocessors.text.1.log_logit_scale": ("logit_scale", lambda scale: scale.reshape(())),
}


def origin(spec: ModelSpec) -> files.Origin:
    """Meta's file."""
    return files.Origin(spec.checkpoint)


def load(spec: ModelSpec, placement: Placement) -> TorchEncoder:
    """Load both towers of a checkpoint; those of sound, depth, heat and motion are left out."""
    import open_clip

    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder, TorchModel

    with loading(spec):
        path = files.local(spec) or files.download(origin(spec))
        state = translate(read_state_dict(path))
        network = create(state)
        load_strictly(network, state, spec.name)
        tokenizer = open_clip.get_tokenizer("ViT-H-14", context_length=network.context_length)
    assert spec.preprocess is not None, "the catalog gives it"

    def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
        return {"text": tokenizer(texts)}

    towers = TorchModel(
        network, lambda pixels: {"projection": network.encode_image(pixels)}, spec.preprocess, tokenize,
        network.encode_text, partial(portable, tokenizer), logit_scale=network.logit_scale.detach().exp().item(),
        text_context=tokenizer.context_length, count_tokens=partial(count_tokens, tokenizer),
    )  # fmt: skip
    return TorchEncoder(spec, towers, placement)


def translate(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ImageBind's names and shapes to open_clip's; a weight it does not know is kept under its name, and refused."""
    translated: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if OTHER_SENSES.match(name) or name == "modality_preprocessors.text.mask":
            continue
        renamed, changed = _translate(name, tensor)
        translated[renamed] = changed
    if "visual.conv1.weight" not in translated:
        raise ModelError("the checkpoint holds no ImageBind image tower", hint="take imagebind_huge.pth")
    return translated


def _translate(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    if name in RESHAPED:
        renamed, change = RESHAPED[name]
        return renamed, change(tensor).contiguous()
    block = re.match(
        r"modality_trunks\.(vision|text)\.blocks\.(\d+)\.(attn\.|norm_1\.|norm_2\.|mlp\.fc1\.|mlp\.fc2\.)", name
    )
    if block:
        tower = "visual.transformer" if block[1] == "vision" else "transformer"
        return f"{tower}.resblocks.{block[2]}.{BLOCK[block[3]]}{name[block.end() :]}", tensor
    for prefix, renamed in RENAMED.items():
        if name.startswith(prefix):
            return renamed + name[len(prefix) :], tensor
    return name, tensor


def create(state: Mapping[str, torch.Tensor], device: str = "cpu") -> Any:
    """open_clip's network in the sizes that the weights have."""
    import open_clip
    import torch

    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
    length, text_width = state["positional_embedding"].shape

    def layers(prefix: str) -> int:
        return len({name.split(".")[prefix.count(".")] for name in state if name.startswith(prefix)})

    with torch.device(device):  # type: ignore[no-untyped-call,unused-ignore]
        network = open_clip.CLIP(
            embed_dim=state["visual.proj"].shape[1],
            vision_cfg={"image_size": grid * patch, "layers": layers("visual.transformer.resblocks."), "width": width,
                        "head_width": VISION_HEAD_WIDTH, "patch_size": patch},
            text_cfg={"context_length": length, "vocab_size": state["token_embedding.weight"].shape[0],
                      "width": text_width, "heads": text_width // TEXT_HEAD_WIDTH,
                      "layers": layers("transformer.resblocks.")},
        )  # fmt: skip
    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = LAYER_NORM_EPS
    return network
