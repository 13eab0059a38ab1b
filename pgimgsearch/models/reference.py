"""What the libraries' own documented calls give, for comparison with ours: none of our preprocessing or towers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.models import encoder
from pgimgsearch.models.canary import pictures as drawn
from pgimgsearch.models.encoder import Encoder, unit
from pgimgsearch.models.spec import ModelSpec
from pgimgsearch.models.weights import download as files

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
    from pgimgsearch.models.encoder import Placement

    if spec.backend not in REFERENCES:
        return None
    ours = encoder.load(spec, Placement("cpu", "fp32"))
    return compare_loaded(ours, REFERENCES[spec.backend](spec), pictures or drawn(), texts)


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


def _timm(spec: ModelSpec) -> Reference:
    import timm

    from pgimgsearch.models.backends import timm as backend

    path = files.local(spec) or files.download(backend.origin(spec))
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


def _transformers(spec: ModelSpec) -> Reference:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    from pgimgsearch.models.backends import transformers as backend

    folder = files.local(spec) or files.download(backend.origin(spec))
    network: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    kind = network.config.model_type

    def embed(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        if kind in backend.DUAL:
            found = {"projection": network.get_image_features(pixel_values=pixels).pooler_output}
            hidden = network.vision_model(pixel_values=pixels).pooler_output
            return found | ({"hidden": hidden} if kind == "clip" else {})
        answer = network(pixel_values=pixels)
        if answer.last_hidden_state.ndim == 4:
            return {"pool": answer.pooler_output.flatten(1)}
        pooled = answer.pooler_output if kind.startswith("dinov") else answer.last_hidden_state[:, 0]
        return {"cls": pooled, "mean": answer.last_hidden_state.mean(1)}

    def texts(of: Sequence[str]) -> torch.Tensor:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if kind == "clip":
            tokens = tokenizer(list(of), padding=True, truncation=True, return_tensors="pt")
        else:  # as the model cards of SigLIP and SigLIP 2 say
            lowered = [text.lower() for text in of] if kind == "siglip2" or _is_siglip2(tokenizer) else list(of)
            length = min(64, network.config.text_config.max_position_embeddings)
            tokens = tokenizer(lowered, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        tokens = {
            name: tokens[name] for name in ("input_ids", "attention_mask") if kind == "clip" or name == "input_ids"
        }
        return torch.as_tensor(network.get_text_features(**tokens).pooler_output)

    return Reference(
        "transformers' model and its processor",
        lambda p: processor(images=list(p), return_tensors="pt")["pixel_values"], embed,
        texts if kind in backend.DUAL else None,
    )  # fmt: skip


def _is_siglip2(tokenizer: Any) -> bool:
    return "gemma" in type(tokenizer).__name__.lower()


def _open_clip(spec: ModelSpec) -> Reference:
    import open_clip

    from pgimgsearch.models.backends import open_clip as backend

    architecture, _, tag = spec.checkpoint.partition("/")
    path = Path(spec.weights) if spec.weights else None
    if path is not None and path.is_dir():
        architecture, source, quick = f"local-dir:{path}", None, False
    else:
        source = str(path) if path else tag
        quick = bool(backend.config_of(architecture, tag).get("quick_gelu")) if tag else False
    network, _, transform = open_clip.create_model_and_transforms(
        architecture, pretrained=source, force_quick_gelu=quick
    )
    network.eval()
    tokenizer = open_clip.get_tokenizer(architecture)
    return Reference(
        "open_clip's encode_image, encode_text and its eval transform",
        lambda p: torch.stack([transform(x) for x in p]), lambda pixels: {"projection": network.encode_image(pixels)},
        lambda of: network.encode_text(tokenizer(list(of))),
    )  # fmt: skip


REFERENCES: dict[str, Callable[[ModelSpec], Reference]] = {
    "timm": _timm, "transformers": _transformers, "open_clip": _open_clip,
}  # fmt: skip
