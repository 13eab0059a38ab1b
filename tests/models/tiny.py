"""Tiny networks of the real architectures, and checkpoints of them in the layout of the hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from pgimgsearch.models import lookup
from tests.support import checkpoints

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = SMALL | {"projection_dim": 24, "projection_size": 32, "max_position_embeddings": 77}

VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16}
WORDS = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": WORDS},
    "quickgelu": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": WORDS},
    "resnet": {"embed_dim": 24, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
               "text_cfg": WORDS},
    "coca": {"embed_dim": 24, "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
             "text_cfg": WORDS | {"embed_cls": True, "output_tokens": True},
             "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1},
             "custom_text": True},
    "siglip": {"embed_dim": 192, "init_logit_bias": -10, "custom_text": True,
               "vision_cfg": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map",
                              "timm_proj": "none"},
               "text_cfg": WORDS | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}},
}  # fmt: skip


def settle(network: torch.nn.Module) -> None:
    """Statistics as after training: with those of a fresh network deep ones give the same vector for every image."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)


def tiny(family: str) -> tuple[Any, dict[str, Any], Callable[[Path], None] | None]:
    """A network, its processor's settings at a small size, and what writes its tokenizer."""
    processor = {**checkpoints.processor_of(lookup.resolve(family))}
    text = TEXT | {"vocab_size": 49408} if family.startswith("clip") else TEXT | {"vocab_size": 104}
    text["max_position_embeddings"] = 77 if family.startswith("clip") else 64
    vision = SMALL | {"image_size": 64, "patch_size": 16, "projection_dim": 24}
    match family.partition("-")[0]:
        case "dinov2":
            kind = (hf.Dinov2WithRegistersConfig, hf.Dinov2WithRegistersModel) if "reg" in family else (
                hf.Dinov2Config, hf.Dinov2Model)  # fmt: skip
            giant = {"use_swiglu_ffn": True} if "giant" in family else {}
            network = kind[1](kind[0](**SMALL, image_size=70, patch_size=14, **giant))
        case "dinov3":
            network = hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SMALL, num_register_tokens=4))
        case "clip":
            network = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
        case _:
            network = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision))
    size = 64 if "crop_size" not in processor or family.startswith("clip") else 70
    square = {"height": size, "width": size}
    processor["size"] = {"shortest_edge": size + (10 if size == 70 else 0)} if "crop_size" in processor else square
    processor |= {"crop_size": square} if "crop_size" in processor else {}
    writes = {
        "clip": checkpoints.clip_tokenizer,
        "siglip": checkpoints.sentence_pieces,
        "siglip2": checkpoints.sentence_pieces,
    }
    return network, processor, writes.get(family.partition("-")[0])


def save(folder: Path, network: Any, processor: dict[str, Any], tokenizer: Callable[[Path], None] | None) -> None:
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    if tokenizer:
        tokenizer(folder)


def describe(folder: Path, config: dict[str, Any], *, squash: bool = False) -> None:
    how = {"interpolation": "bicubic", "resize_mode": "squash" if squash else "shortest", "mean": [0.5] * 3,
           "std": [0.5] * 3}  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": how}))
