"""The image processors of the hub, from their settings (preprocessor_config.json)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models.spec import Preprocess


def read_processor(file: Path) -> Preprocess:
    """What a preprocessor_config.json describes; raises ModelError for what it cannot mean."""
    try:
        return preprocess_of(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read {file}: {error!r}", hint="it should be a preprocessor_config.json") from error


def preprocess_of(settings: Mapping[str, Any]) -> Preprocess:
    """What a processor with these settings does; raises ModelError for what ours does not do."""
    unusual = [name for name in ("do_resize", "do_rescale", "do_normalize") if settings.get(name, True) is False]
    unusual += [name for name in ("include_top", "rescale_offset", "do_pad") if settings.get(name)]
    if unusual or abs((settings.get("rescale_factor") or 1 / 255) - 1 / 255) > 1e-9:
        raise ModelError(
            f"this image processor is not supported: {unusual or 'its rescale_factor'}", hint="use another checkpoint"
        )
    size = _sides(settings["size"], "shortest_edge")
    crop = _sides(settings["crop_size"], "height") if settings.get("do_center_crop") else None
    if "shortest_edge" in size and crop:
        shape, resize, resize_to = (crop["height"], crop["width"]), "shortest", size["shortest_edge"]
    elif "height" in size and crop in (None, size):
        shape, resize, resize_to = (size["height"], size["width"]), "squash", size["height"]
    else:
        raise ModelError(
            f"this image processor is not supported: size {size}, crop {crop}", hint="use another checkpoint"
        )
    return Preprocess(
        size=shape,
        resize=resize,  # type: ignore[arg-type]
        resize_to=resize_to,
        interpolation=Image.Resampling(settings.get("resample", 2)).name.lower(),  # type: ignore[arg-type]
        mean=tuple(settings["image_mean"]),
        std=tuple(settings["image_std"]),
        centre="floor",
        whole=not settings.get("image_processor_type", "").startswith("DINOv3ViT"),
    )


def _sides(value: Any, single: str) -> dict[str, int]:
    """Sides by name; older files give one number."""
    if isinstance(value, int):
        return {"shortest_edge": value} if single == "shortest_edge" else {"height": value, "width": value}
    return {name: side for name, side in dict(value).items() if side is not None}
