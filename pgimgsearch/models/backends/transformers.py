"""Models of transformers: ``hf:REPOSITORY``, or a local folder in the same layout."""

from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from pgimgsearch.errors import ModelError
from pgimgsearch.models.spec import ModelSpec, Preprocess
from pgimgsearch.models.torch_encoder import TorchEncoder, Towers, choose_device
from pgimgsearch.models.weights import loading

DUAL = {"clip", "siglip", "siglip2"}  # an image and a text tower that meet in one space


def load(spec: ModelSpec, device: str) -> TorchEncoder:
    """Load a dual encoder (projection) or a vision model (class token, or the mean of all tokens)."""
    device = choose_device(device)
    source, revision = spec.weights or spec.checkpoint, spec.revision
    with loading(spec):
        config = AutoConfig.from_pretrained(source, revision=revision)
        network, report = AutoModel.from_pretrained(
            source, revision=revision, config=config, dtype=torch.float32, output_loading_info=True
        )
        _refuse_incomplete(spec, network, report)
        preprocess = preprocess_of(AutoImageProcessor.from_pretrained(source, revision=revision))
        dual = config.model_type in DUAL
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision) if dual else None
    towers = Towers(
        network,
        _dual_image(network) if dual else _image(network, spec.output),
        preprocess,
        _text(network, tokenizer, config, device) if dual else None,
        logit_scale=network.logit_scale.detach().exp().item() if dual else None,
        logit_bias=network.logit_bias.detach().item() if hasattr(network, "logit_bias") else None,
        revision=getattr(config, "_commit_hash", None),
    )
    return TorchEncoder(spec, towers, device)


def _refuse_incomplete(spec: ModelSpec, network: Any, report: dict[str, Any]) -> None:
    """The library fills missing weights with noise and only warns; a pooler that is not used may be missing."""
    missing = [key for key in report["missing_keys"] if "pooler" not in key or network.config.model_type in DUAL]
    broken = missing + [str(key) for key in report.get("mismatched_keys", ())]
    if broken:
        raise ModelError(
            f"the checkpoint of {spec.name} lacks weights: {', '.join(sorted(broken)[:3])}",
            hint="it belongs to another architecture, or is truncated: fetch it again",
        )


def _dual_image(network: Any) -> Any:
    def image(pixels: torch.Tensor) -> Any:
        return network.get_image_features(pixel_values=pixels).pooler_output

    return image


def _image(network: Any, output: str) -> Any:
    def image(pixels: torch.Tensor) -> Any:
        answer = network(pixel_values=pixels)
        tokens = answer.last_hidden_state
        if tokens.ndim == 4:  # a convolutional network: its pooled map
            return answer.pooler_output.flatten(1)
        return tokens.mean(1) if output == "mean" else tokens[:, 0]

    return image


def _text(network: Any, tokenizer: Any, config: Any, device: str) -> Any:
    length = config.text_config.max_position_embeddings
    siglip = config.model_type != "clip"
    lower = "gemma" in type(tokenizer).__name__.lower()  # SigLIP 2 was trained on lower-cased text

    def text(texts: list[str]) -> Any:
        tokens = tokenizer(
            [text.lower() for text in texts] if lower else texts,
            padding="max_length" if siglip else True, truncation=True, max_length=length, return_tensors="pt",
        )  # fmt: skip
        inputs = {"input_ids": tokens["input_ids"].to(device)}
        if not siglip:  # SigLIP attends to its padding, as it did in training
            inputs["attention_mask"] = tokens["attention_mask"].to(device)
        return network.get_text_features(**inputs).pooler_output

    return text


def preprocess_of(processor: Any) -> Preprocess:
    """What the checkpoint's image processor does, from its own settings."""
    unusual = [name for name in ("do_resize", "do_rescale", "do_normalize") if getattr(processor, name, True) is False]
    if unusual or abs(getattr(processor, "rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise ModelError(
            f"this image processor is not supported: {unusual or 'its rescale_factor'}", hint="use another"
        )
    size = dict(processor.size)
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) and processor.crop_size else None
    if "shortest_edge" in size and crop:
        shape, resize, resize_to = (crop["height"], crop["width"]), "shortest", size["shortest_edge"]
    elif "height" in size and (crop is None or crop == size):
        shape, resize, resize_to = (size["height"], size["width"]), "squash", size["height"]
    else:
        raise ModelError(
            f"this image processor is not supported: size {size}, crop {crop}", hint="use another checkpoint"
        )
    return Preprocess(
        size=shape,
        resize=resize,  # type: ignore[arg-type]
        resize_to=resize_to,
        interpolation=Image.Resampling(processor.resample).name.lower(),  # type: ignore[arg-type]
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        centre="floor",
    )
