"""Folders of ONNX exports as others lay them out: those of transformers.js on the hub, and those of Immich."""

import json
from pathlib import Path
from typing import Any

from pgimgsearch.errors import ModelError
from pgimgsearch.models.hf_processor import read_processor
from pgimgsearch.models.runtime.text_tokens import CLEANERS, SIGLIP_TEXT_LENGTH, TextTokenizer, lowers
from pgimgsearch.models.spec import Preprocess

# Image tower -> text tower; the image tower of the first line that a folder has is taken.
TOWERS = {
    "vision_model.onnx": "text_model.onnx",
    "onnx/vision_model.onnx": "onnx/text_model.onnx",
    "visual/model.onnx": "textual/model.onnx",
    "model.onnx": None,
    "onnx/model.onnx": None,
    "visual.onnx": "textual.onnx",
}
LONGEST_TEXT = 512  # tokens, where nothing says


def image_tower(folder: Path) -> Path:
    """The image tower of a folder: the export in full precision."""
    for name in TOWERS:
        if (folder / name).exists():
            return folder / name
    found = sorted(folder.rglob("*.onnx"))
    if len(found) == 1:
        return found[0]
    raise ModelError(
        f"{folder} holds {len(found)} ONNX files, none of them called model.onnx",
        hint="name the file: onnx:FOLDER/FILE.onnx",
    )


def text_tower(folder: Path, image: Path) -> tuple[Path, TextTokenizer] | None:
    """The text tower that belongs to an image tower, with its tokenizer; None where one of them is not there."""
    name = TOWERS.get(image.relative_to(folder).as_posix())
    if name is None or not (folder / name).exists():
        return None
    file = folder / name
    for place in (file.parent, folder):
        if (place / "tokenizer.json").exists():
            return file, _tokenizer(place, _read(folder / "config.json") or _read(folder / "open_clip_config.json"))
    return None


def described_preprocessing(file: Path) -> Preprocess:
    """What lies near an image tower says of how its images are prepared; raises ModelError where nothing does."""
    for folder in (file.parent, file.parent.parent):
        if (folder / "preprocessor_config.json").exists():
            return read_processor(folder / "preprocessor_config.json")
        if (folder / "preprocess_cfg.json").exists():
            return _open_clip_preprocessing(folder / "preprocess_cfg.json")
    raise ModelError(
        f"nothing says how images are prepared for {file}",
        hint="put its preprocessor_config.json beside it, or say --preprocess imagenet, clip or siglip",
    )


def _tokenizer(place: Path, config: dict[str, Any]) -> TextTokenizer:
    """Texts are cut and padded as the tokenizer says, else as the model was trained."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    said = _read(place / "tokenizer_config.json")
    model = config.get("model_cfg", config)
    is_siglip = str(model.get("model_type", "")).startswith("siglip")
    limits = [
        model.get("text_cfg", {}).get("context_length"), model.get("text_config", {}).get("max_position_embeddings"),
        said.get("model_max_length"), SIGLIP_TEXT_LENGTH if is_siglip else None, LONGEST_TEXT,
    ]  # fmt: skip
    length = min(int(limit) for limit in limits if limit)
    padding = said.get("pad_token") or "[PAD]"
    padding = padding["content"] if isinstance(padding, dict) else padding
    if tokenizer.truncation is None:
        tokenizer.enable_truncation(length)
    if tokenizer.padding is None:
        fixed = is_siglip or "text_cfg" in model
        tokenizer.enable_padding(
            pad_id=tokenizer.token_to_id(padding) or 0, pad_token=padding, length=length if fixed else None
        )
    return TextTokenizer(tokenizer, _cleaner(model, said))


def _cleaner(model: dict[str, Any], said: dict[str, Any]) -> str:
    """What cleans texts first: open_clip's ways, and the lower case of SigLIP 2."""
    if (text := model.get("text_cfg")) is not None:
        usual = "whitespace" if text.get("hf_tokenizer_name") else "lower"
        named = (text.get("tokenizer_kwargs") or {}).get("clean", usual)
        return named if named in CLEANERS else usual
    is_lower = lowers(str(said.get("tokenizer_class", ""))) or model.get("model_type") == "siglip2"
    return "lower-case" if is_lower else "none"


def _open_clip_preprocessing(file: Path) -> Preprocess:
    said = _read(file)
    try:
        size = said["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return Preprocess(
            size=(height, width), resize=said.get("resize_mode", "shortest"), resize_to=height,
            interpolation=said.get("interpolation", "bicubic"), mean=tuple(said["mean"]), std=tuple(said["std"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error!r}", hint="it should hold size, mean and std") from error


def _read(file: Path) -> dict[str, Any]:
    """A file of settings; nothing where it is not there."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error}", hint="it should be a JSON object") from error
    return found if isinstance(found, dict) else {}
