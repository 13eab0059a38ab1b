"""Models of OpenCLIP: ``open_clip:ARCHITECTURE/TAG``, or a local folder or file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgimgsearch.errors import ModelError
from pgimgsearch.models.backends import Backend
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import ModelSpec, Preprocess
from pgimgsearch.models.weights import download as files
from pgimgsearch.models.weights.load_state import load_strictly, loading, read_state_dict

if TYPE_CHECKING:
    import torch

    from pgimgsearch.models.reference import Reference
    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder

BACKEND = Backend(package="open_clip", prefix="open_clip", on_torch=True)

CLEANERS = {"_clean_lower": "lower", "_clean_whitespace": "whitespace", "_clean_canonicalize": "canonicalize"}
CONFIG = "open_clip_config.json"
TOKENIZER_OPTIONS = {"clean", "context_length", "language", "strip_sep_token"}  # of a folder, which is data
SAFE, OTHER = ("open_clip_model.safetensors",), ("open_clip_pytorch_model.bin",)


def origin(spec: ModelSpec) -> files.Origin:
    """The repository of a tag: ``organisation/name/``, or with the name of a file in it."""
    architecture, _, tag = spec.checkpoint.partition("/")
    repository, _, file = config_of(architecture, tag)["hf_hub"].rpartition("/")
    if not file:
        return files.Origin(repository, (SAFE, OTHER), revision=spec.revision)
    safe = (str(Path(file).with_suffix(".safetensors")),) if file.endswith((".bin", ".pth")) else (file,)
    return files.Origin(repository, (safe, (file,)), revision=spec.revision)


def companions(spec: ModelSpec) -> list[files.Origin]:
    """Other repositories that an architecture needs: its tokenizer's, and that of its text tower's configuration."""
    import open_clip

    text = open_clip.get_model_config(spec.checkpoint.partition("/")[0])["text_cfg"]
    named = [text.get(key) for key in ("hf_tokenizer_name", "hf_model_name")]
    describing = ("*.json", "*.txt", "*.model")
    return [files.Origin(name, (describing,)) for name in dict.fromkeys(named) if name]


def load(spec: ModelSpec, placement: Placement) -> TorchEncoder:
    """Load both towers; the activation comes from the tag's own config, where the library only warns."""
    import open_clip
    from open_clip.factory import load_checkpoint

    from pgimgsearch.models.runtime.torch_encoder import TorchEncoder, TorchModel

    architecture, _, tag = spec.checkpoint.partition("/")
    with loading(spec):
        _ask_for_no_code()
        path = files.local(spec)
        if path and path.is_dir():
            _check_config(path)
            architecture = f"local-dir:{path}"
            network = open_clip.create_model(architecture, pretrained_image=False, pretrained_text=False)
        else:
            network = create(architecture, tag)
            if path is None:
                found = origin(spec)
                folder = files.download(found)
                path = files.first(folder, [name for group in found.weights for name in group])
                load_checkpoint(network, str(path), strict=True, weights_only=True)
                path = folder
            else:
                load_strictly(network, read_state_dict(path), spec.name)
        tokenizer = tokenizer_of(architecture)
    bias = getattr(network, "logit_bias", None)

    def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
        return {"text": tokenizer(texts)}

    towers = TorchModel(
        network, lambda pixels: {"projection": network.encode_image(pixels)}, preprocess_of(network), tokenize,
        network.encode_text, partial(portable, tokenizer), logit_scale=network.logit_scale.detach().exp().item(),
        logit_bias=None if bias is None else bias.detach().item(), revision=files.revision_of(path),
        text_context=tokenizer.context_length, count_tokens=partial(count_tokens, tokenizer),
    )  # fmt: skip
    return TorchEncoder(spec, towers, placement)


def tokenizer_of(architecture: str) -> Any:
    """The library's tokenizer of an architecture or folder; one of transformers never runs code of its files."""
    import open_clip

    _, _, folder = architecture.partition(":")
    config = json.loads((Path(folder) / CONFIG).read_text())["model_cfg"] if folder else (
        open_clip.get_model_config(architecture) or {})  # fmt: skip
    safely = {"trust_remote_code": False} if config.get("text_cfg", {}).get("hf_tokenizer_name") else {}
    return open_clip.get_tokenizer(architecture, **safely)


def _ask_for_no_code() -> None:
    """Make transformers refuse a text tower that brings its own code; on a terminal it would ask whether to run it."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def _check_config(folder: Path) -> None:
    """Refuse a folder whose description gives the tokenizer options of another kind, which the library passes on."""
    try:
        config = json.loads((folder / CONFIG).read_text())["model_cfg"]
        text = config.get("text_cfg", {})
        unknown = text.get("tokenizer_kwargs", {}).keys() - TOKENIZER_OPTIONS
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder} has no usable {CONFIG}: {error}", hint="give the folder as open_clip saves it"
        ) from error
    if unknown:
        raise ModelError(
            f"{folder / CONFIG} gives the tokenizer options that are not allowed: {', '.join(sorted(unknown))}",
            hint=f"remove them; allowed: {', '.join(sorted(TOKENIZER_OPTIONS))}",
        )


def count_tokens(tokenizer: Any, text: str) -> int:
    """The tokens of a text before the library's tokenizer cuts or reduces them."""
    if hasattr(tokenizer, "encode"):  # its own one, which adds the first and the last
        return len(tokenizer.encode(text)) + 2
    return len(tokenizer.tokenizer(tokenizer.clean_fn(text), verbose=False)["input_ids"])


def portable(tokenizer: Any) -> tuple[Any, str] | None:
    """The library's own tokenizer, or a fast one of transformers, for ``tokenizers`` alone."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    cleaner = CLEANERS.get(tokenizer.clean_fn.__name__)
    if cleaner is None:
        return None
    if isinstance(tokenizer, SimpleTokenizer) and tokenizer.reduction_fn is None:
        return _byte_pairs(tokenizer), cleaner
    backend = getattr(getattr(tokenizer, "tokenizer", None), "backend_tokenizer", None)
    if (
        not isinstance(tokenizer, HFTokenizer)
        or backend is None
        or tokenizer.strip_sep_token
        or tokenizer.tokenizer_mode
    ):
        return None
    from tokenizers import Tokenizer

    copied = Tokenizer.from_str(backend.to_str())
    length, inner = tokenizer.context_length, tokenizer.tokenizer
    copied.enable_truncation(length)
    copied.enable_padding(
        direction=inner.padding_side, pad_id=inner.pad_token_id, pad_token=inner.pad_token, length=length
    )
    return copied, cleaner


def _byte_pairs(tokenizer: Any) -> Any:
    """CLIP's byte pairs: a text begins and ends with a token of its own, and is padded with zeros."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.BPE(vocab=tokenizer.encoder, merges=list(tokenizer.bpe_ranks), end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(f"(?i){tokenizer.pat.pattern}"), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    names = [tokenizer.decoder[number] for number in tokenizer.all_special_ids]
    made.add_special_tokens(names)
    first, last = names[:2]
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(name, tokenizer.encoder[name]) for name in (first, last)]
    )
    made.enable_truncation(tokenizer.context_length)
    made.enable_padding(pad_id=0, length=tokenizer.context_length)
    return made


def config_of(architecture: str, tag: str) -> dict[str, Any]:
    """What the library knows of a pair; raises ModelError with the pairs there are."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    if architecture not in open_clip.list_models():
        raise ModelError(
            f"open_clip has no architecture {architecture}",
            hint="write open_clip:ARCHITECTURE/TAG, for example open_clip:ViT-B-32/laion2b_s34b_b79k",
        )
    config: dict[str, Any] = get_pretrained_cfg(architecture, tag) if tag else {}
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none: give --weights PATH"
        raise ModelError(f"open_clip has no weights {tag or '(no tag)'} for {architecture}", hint=f"tags: {tags}")
    return config


def create(architecture: str, tag: str, device: str = "cpu") -> Any:
    """A network without weights, with the activation and the preprocessing of its tag; none is the library's."""
    import open_clip
    import torch

    known = architecture in open_clip.list_models()
    config = config_of(architecture, tag) if tag or not known else {}
    own = {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config}
    with torch.device(device):
        return open_clip.create_model(
            architecture, device=device, force_quick_gelu=bool(config.get("quick_gelu")), force_preprocess_cfg=own,
            pretrained_image=False, pretrained_text=False,
        )  # fmt: skip


def preprocess_of(network: Any) -> Preprocess:
    """What open_clip's own eval transform of this network does."""
    import open_clip

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


def reference(spec: ModelSpec) -> Reference:
    import open_clip
    import torch

    from pgimgsearch.models.reference import Reference

    architecture, _, tag = spec.checkpoint.partition("/")
    path = Path(spec.weights) if spec.weights else None
    if path is not None and path.is_dir():
        _check_config(path)
        architecture, source, quick = f"local-dir:{path}", None, False
    else:
        source = str(path) if path else tag
        quick = bool(config_of(architecture, tag).get("quick_gelu")) if tag else False
    network, _, transform = open_clip.create_model_and_transforms(
        architecture, pretrained=source, force_quick_gelu=quick
    )
    network.eval()
    tokenizer = tokenizer_of(architecture)
    return Reference(
        "open_clip's encode_image, encode_text and its eval transform",
        lambda p: torch.stack([transform(x) for x in p]), lambda pixels: {"projection": network.encode_image(pixels)},
        lambda of: network.encode_text(tokenizer(list(of))),
    )  # fmt: skip
