"""Models of transformers: ``hf:REPOSITORY``, or a local folder in the same layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pgimgsearch.errors import ModelError
from pgimgsearch.models.backends import Backend
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.hf_processor import preprocess_of
from pgimgsearch.models.runtime.text_tokens import SIGLIP_TEXT_LENGTH, lowers
from pgimgsearch.models.spec import ModelSpec
from pgimgsearch.models.weights import download as files
from pgimgsearch.models.weights.load_state import loading

if TYPE_CHECKING:
    import torch

    from pgimgsearch.models.reference import Reference
    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder

BACKEND = Backend(package="transformers", prefix="hf", on_torch=True)

DUAL = {"clip", "siglip", "siglip2"}  # an image and a text tower that meet in one space


def origin(spec: ModelSpec) -> files.Origin:
    """A repository of the hub."""
    describing = ("*.json", "*.txt", "*.model")
    return files.Origin(
        spec.checkpoint, (("model*.safetensors",), ("pytorch_model*.bin",)), describing, spec.revision
    )  # fmt: skip


def load(spec: ModelSpec, placement: Placement) -> TorchEncoder:
    """Load a dual encoder or a vision model from a folder in the layout of the hub."""
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder, TorchModel

    disable_progress_bar()  # of reading local files
    with loading(spec):
        folder = files.local(spec) or files.download(origin(spec))
        if not folder.is_dir():
            raise ModelError(f"{folder} is a file", hint="give the folder that holds it, with its config.json")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        network, report = AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        _refuse_misfits(spec, network, report)
        preprocess = preprocess_of(AutoImageProcessor.from_pretrained(folder, trust_remote_code=False).to_dict())
        dual = config.model_type in DUAL
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if dual else None
    revision = files.revision_of(folder)
    if tokenizer is None:
        return TorchEncoder(spec, TorchModel(network, vision(network), preprocess, revision=revision), placement)
    bias = getattr(network, "logit_bias", None)
    towers = TorchModel(
        network, vision(network), preprocess, tokenize=tokenize(tokenizer, config),
        text=lambda **tokens: network.get_text_features(**tokens).pooler_output,
        portable_tokenizer=partial(portable, tokenizer, config), text_context=text_context(config),
        count_tokens=lambda text: len(tokenizer(lowered(tokenizer, text), verbose=False)["input_ids"]),
        logit_scale=network.logit_scale.detach().exp().item(),
        logit_bias=None if bias is None else bias.detach().item(), revision=revision,
    )  # fmt: skip
    return TorchEncoder(spec, towers, placement)


def _refuse_misfits(spec: ModelSpec, network: Any, report: dict[str, Any]) -> None:
    """The library fills missing weights with noise and only warns.

    A pooler that is not used may be missing; a classifier's head may be there, and is left out.
    """
    dual = network.config.model_type in DUAL
    missing = [key for key in report["missing_keys"] if "pooler" not in key or dual]
    broken = [f"{key} is missing" for key in missing]
    broken += [f"{key} does not fit" for key in map(str, report.get("mismatched_keys", ()))]
    broken += [
        f"{key} is not expected"
        for key in report.get("unexpected_keys", ())
        if not key.startswith(("classifier.", "head.", "lm_head."))
    ]
    if broken:
        listed = "; ".join(sorted(broken)[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise ModelError(
            f"the weights do not fit {spec.name}: {listed}",
            hint="the checkpoint belongs to another architecture, or is truncated: fetch it again",
        )


def vision(network: Any) -> Callable[[torch.Tensor], Mapping[str, torch.Tensor]]:
    """How the network sees: its outputs by name, the main one first."""
    kind = network.config.model_type
    if kind == "clip":
        return lambda pixels: _clip_outputs(network, pixels)
    if kind in DUAL:  # SigLIP: the attention-pooling head is the last layer
        return lambda pixels: {"projection": network.get_image_features(pixel_values=pixels).pooler_output}
    return lambda pixels: _vision_outputs(network(pixel_values=pixels))


def _clip_outputs(network: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    hidden = network.vision_model(pixel_values=pixels).pooler_output
    return {"projection": network.visual_projection(hidden), "hidden": hidden}


def _vision_outputs(answer: Any) -> dict[str, torch.Tensor]:
    tokens = answer.last_hidden_state
    if tokens.ndim == 4:  # a convolutional network: its pooled map
        return {"pool": answer.pooler_output.flatten(1)}
    return {"cls": tokens[:, 0], "mean": tokens.mean(1)}


def text_context(config: Any) -> int:
    """The tokens of a text that are read."""
    length: int = config.text_config.max_position_embeddings
    return length if config.model_type == "clip" else min(length, SIGLIP_TEXT_LENGTH)


def lowered(tokenizer: Any, text: str) -> str:
    """A text as its tokenizer wants it: SigLIP 2 was trained in lower case."""
    return text.lower() if lowers(type(tokenizer).__name__) else text


def tokenize(tokenizer: Any, config: Any) -> Callable[[list[str]], Mapping[str, torch.Tensor]]:
    """Strings to tokens as in training: CLIP pads to the longest, SigLIP to 64, and SigLIP 2 lower-cases."""
    length = text_context(config)
    if config.model_type == "clip":

        def clip(texts: list[str]) -> Mapping[str, torch.Tensor]:
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
            return {name: tokens[name] for name in ("input_ids", "attention_mask")}

        return clip

    def siglip(texts: list[str]) -> Mapping[str, torch.Tensor]:
        texts = [lowered(tokenizer, text) for text in texts]
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return {"input_ids": tokens["input_ids"]}  # it attends to its padding, as it did in training

    return siglip


def portable(tokenizer: Any, config: Any) -> tuple[Any, str] | None:
    """The same as ``tokenize``, for ``tokenizers`` alone."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    from tokenizers import Tokenizer

    copied = Tokenizer.from_str(backend.to_str())
    length = text_context(config)
    copied.enable_truncation(length)
    copied.enable_padding(
        direction=tokenizer.padding_side, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token,
        length=None if config.model_type == "clip" else length,
    )  # fmt: skip
    return copied, "lower-case" if lowers(type(tokenizer).__name__) else "none"


def reference(spec: ModelSpec) -> Reference:
    import torch
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    from pgimgsearch.models.reference import Reference

    folder = files.local(spec) or files.download(origin(spec))
    network: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    kind = network.config.model_type

    def embed(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        if kind in DUAL:
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
        texts if kind in DUAL else None,
    )  # fmt: skip


def _is_siglip2(tokenizer: Any) -> bool:
    return "gemma" in type(tokenizer).__name__.lower()
