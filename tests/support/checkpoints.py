"""Checkpoints of the catalog's architectures with random weights, in the layout of the hub; full-size or on paper.

The sizes are those of the models' cards and papers, where no library of ours knows them by name.
"""

import json
from pathlib import Path
from typing import Any

import torch

from pgimgsearch.models.backends import imagebind, open_clip, sscd, timm
from pgimgsearch.models.catalog import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from pgimgsearch.models.spec import ModelSpec

DINOV2 = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}
DINOV3 = {"vits16": (384, 12, 6, 1536), "vitb16": (768, 12, 12, 3072), "vitl16": (1024, 24, 16, 4096)}
# openai/...: width, layers, heads, patch of the image tower; width and heads of the text tower; projection
CLIP = {
    "clip-vit-base-patch32": (768, 12, 12, 32, 512, 8, 512), "clip-vit-base-patch16": (768, 12, 12, 16, 512, 8, 512),
    "clip-vit-large-patch14": (1024, 24, 16, 14, 768, 12, 768),
}  # fmt: skip
# google/...: width, layers, heads, hidden layer, patch; the text tower has the same width and layers
SIGLIP = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096), "so400m": (1152, 27, 16, 4304)}
SIGLIP_WORDS, SIGLIP2_WORDS = 32_000, 256_000


def network_of(spec: ModelSpec, device: str) -> torch.nn.Module:
    """The full-size network of a row, on a device; ``meta`` takes no memory."""
    if spec.backend == "timm":
        with torch.device(device):
            return timm.create(spec.checkpoint)[0]  # type: ignore[no-any-return]
    if spec.backend == "open_clip":
        architecture, _, tag = spec.checkpoint.partition("/")
        return open_clip.create(architecture, tag, device)  # type: ignore[no-any-return]
    with torch.device(device):
        if spec.backend == "sscd":
            return sscd.create(spec.dim)  # type: ignore[no-any-return]
        if spec.backend == "imagebind":
            return imagebind.create(imagebind.translate(imagebind_shapes(device)), device)  # type: ignore[no-any-return]
        from transformers import AutoModel

        return AutoModel.from_config(config_of(spec))  # type: ignore[no-any-return]


def config_of(spec: ModelSpec) -> Any:
    """The configuration of a repository of the hub."""
    import transformers as hf

    name = spec.checkpoint.rpartition("/")[2]
    if name.startswith("dinov2"):
        size = next(size for size in DINOV2 if size in name)
        width, layers, heads = DINOV2[size]
        kind = hf.Dinov2WithRegistersConfig if "registers" in name else hf.Dinov2Config
        return kind(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=518,
                    patch_size=14, use_swiglu_ffn=size == "giant")  # fmt: skip
    if name.startswith("dinov3"):
        width, layers, heads, inner = DINOV3[name.split("-")[1]]
        return hf.DINOv3ViTConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                                  intermediate_size=inner, num_register_tokens=4)  # fmt: skip
    if name in CLIP:
        width, layers, heads, patch, text_width, text_heads, projection = CLIP[name]
        return hf.CLIPConfig(
            text_config={"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_hidden_layers": 12,
                         "num_attention_heads": text_heads, "projection_dim": projection},
            vision_config={"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
                           "num_attention_heads": heads, "patch_size": patch, "projection_dim": projection},
            projection_dim=projection,
        )  # fmt: skip
    size = next(size for size in SIGLIP if size in name)
    width, layers, heads, inner = SIGLIP[size]
    tower = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
             "intermediate_size": inner}  # fmt: skip
    patch = int(name.split("patch")[1].split("-")[0])
    words = SIGLIP2_WORDS if "siglip2" in name else SIGLIP_WORDS
    return hf.SiglipConfig(
        text_config=tower | {"vocab_size": words, "max_position_embeddings": 64, "projection_size": width},
        vision_config=tower | {"image_size": spec.size, "patch_size": patch},
    )


def processor_of(spec: ModelSpec) -> dict[str, Any]:
    """The preprocessor_config.json of a repository of the hub."""
    size = spec.size
    square = {"height": size, "width": size}
    name = spec.checkpoint
    if "dinov2" in name:
        return {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": square,
                "do_center_crop": True, "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3,
                "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}  # fmt: skip
    if "dinov3" in name:
        return {"image_processor_type": "DINOv3ViTImageProcessor", "size": square, "do_resize": True,
                "do_rescale": True, "do_normalize": True, "resample": 2, "image_mean": IMAGENET_MEAN,
                "image_std": IMAGENET_STD}  # fmt: skip
    if "clip" in name:
        return {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": size}, "crop_size": square,
                "do_center_crop": True, "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3,
                "do_convert_rgb": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}  # fmt: skip
    return {"image_processor_type": "SiglipImageProcessor", "size": square, "do_resize": True, "do_rescale": True,
            "do_normalize": True, "resample": 2 if "siglip2" in name else 3, "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3}  # fmt: skip


def imagebind_shapes(
    device: str, width: int = 1280, layers: int = 32, patch: int = 14, grid: int = 16, text_width: int = 1024,
    text_layers: int = 24, words: int = 49408, dim: int = 1024,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """A state dict with ImageBind's own names and shapes; random where the device is not ``meta``."""
    generator = torch.Generator().manual_seed(0) if device != "meta" else None

    def noise(*shape: int) -> torch.Tensor:
        if generator is None:
            return torch.empty(shape, device="meta")
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    state = {
        "modality_preprocessors.vision.cls_token": noise(1, 1, width),
        "modality_preprocessors.vision.rgbt_stem.proj.1.weight": noise(width, 3, 2, patch, patch),
        "modality_preprocessors.vision.pos_embedding_helper.pos_embed": noise(1, grid * grid + 1, width),
        "modality_trunks.vision.pre_transformer_layer.0.weight": 1 + noise(width),
        "modality_trunks.vision.pre_transformer_layer.0.bias": noise(width),
        "modality_heads.vision.0.weight": 1 + noise(width), "modality_heads.vision.0.bias": noise(width),
        "modality_heads.vision.2.weight": noise(dim, width),
        "modality_preprocessors.text.pos_embed": noise(1, 77, text_width),
        "modality_preprocessors.text.mask": noise(77, 77),
        "modality_preprocessors.text.token_embedding.weight": noise(words, text_width),
        "modality_heads.text.proj.0.weight": 1 + noise(text_width),
        "modality_heads.text.proj.0.bias": noise(text_width),
        "modality_heads.text.proj.1.weight": noise(dim, text_width),
        "modality_postprocessors.text.1.log_logit_scale": noise(1)[0] * 0 + 2.66,
        "modality_trunks.audio.blocks.0.norm_1.weight": noise(8),
    }  # fmt: skip
    for tower, wide, deep in (("vision", width, layers), ("text", text_width, text_layers)):
        for layer in range(deep):
            block = f"modality_trunks.{tower}.blocks.{layer}."
            state |= {
                f"{block}attn.in_proj_weight": noise(3 * wide, wide), f"{block}attn.in_proj_bias": noise(3 * wide),
                f"{block}attn.out_proj.weight": noise(wide, wide), f"{block}attn.out_proj.bias": noise(wide),
                f"{block}norm_1.weight": 1 + noise(wide), f"{block}norm_1.bias": noise(wide),
                f"{block}norm_2.weight": 1 + noise(wide), f"{block}norm_2.bias": noise(wide),
                f"{block}mlp.fc1.weight": noise(4 * wide, wide), f"{block}mlp.fc1.bias": noise(4 * wide),
                f"{block}mlp.fc2.weight": noise(wide, 4 * wide), f"{block}mlp.fc2.bias": noise(wide),
            }  # fmt: skip
    return state


def write_checkpoint(spec: ModelSpec, folder: Path) -> str:
    """Random weights of the full size for a row, as its backend loads them. Returns what ``weights`` should name."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    if spec.backend == "imagebind":
        torch.save(imagebind_shapes("cpu"), folder / "weights.pt")
        return str(folder / "weights.pt")
    network: Any = network_of(spec, "cpu")
    if spec.backend != "transformers":
        torch.save(network.state_dict(), folder / "weights.pt")
        return str(folder / "weights.pt")
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_of(spec)))
    if spec.text:
        tokenizer_of(spec, folder)
    return str(folder)


def tokenizer_of(spec: ModelSpec, folder: Path) -> None:
    """CLIP's own tokenizer, which open_clip carries; for SigLIP one of the same kind, trained on nothing much."""
    (clip_tokenizer if "openai/" in spec.checkpoint else sentence_pieces)(folder)


def clip_tokenizer(folder: Path) -> None:
    """The files of CLIP's tokenizer in the layout of the hub."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    own = SimpleTokenizer()
    merges = list(own.bpe_ranks)
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(word, word): number for word, number in own.encoder.items()}
    CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)


def sentence_pieces(folder: Path) -> None:
    """A small SigLIP tokenizer: words by letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127)), *"äöüß猫"]
    words = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token="<unk>"))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", padding_side="right",
    ).save_pretrained(folder)  # fmt: skip


def counted(network: torch.nn.Module) -> float:
    """Parameters in millions."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6
