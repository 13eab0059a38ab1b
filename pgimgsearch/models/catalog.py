"""The table of models that have a short name, and the prefixes that reach every other one."""

import difflib
from dataclasses import replace
from pathlib import Path

from pgimgsearch.errors import ModelError
from pgimgsearch.models.spec import ModelSpec

CATALOG: tuple[ModelSpec, ...] = (
    ModelSpec(
        "dinov3", "timm", "vit_large_patch16_dinov3.lvd1689m", output="cls", dim=1024, licence="DINOv3 License",
        batch_size=16, good_for="similar pictures, instances, fine detail; the strongest here",
    ),
    ModelSpec(
        "dinov3-hf", "transformers", "facebook/dinov3-vitl16-pretrain-lvd1689m", output="cls", dim=1024,
        licence="DINOv3 License", gated=True, alternative="dinov3", batch_size=16,
        good_for="the same weights with Meta's own preprocessing",
    ),
    ModelSpec(
        "dinov2-base", "transformers", "facebook/dinov2-base", output="cls", dim=768, licence="Apache-2.0",
        good_for="similar pictures and instances at a third of dinov3's cost",
    ),
    ModelSpec(
        "clip-vit-b-32", "transformers", "openai/clip-vit-base-patch32", output="projection", dim=512, text=True,
        licence="MIT", near=0.96, batch_size=64, good_for="text to image, fast",
    ),
    ModelSpec(
        "openclip-vit-b-32-laion2b", "open_clip", "ViT-B-32/laion2b_s34b_b79k", output="projection", dim=512,
        text=True, licence="MIT", near=0.96, batch_size=64, good_for="text to image, fast, better than clip-vit-b-32",
    ),
    ModelSpec(
        "siglip2-b-16-224", "transformers", "google/siglip2-base-patch16-224", output="projection", dim=768, text=True,
        licence="Apache-2.0", good_for="text to image in many languages",
    ),
    ModelSpec(
        "resnet50", "timm", "resnet50.tv_in1k", dim=2048, licence="BSD-3-Clause", batch_size=64,
        good_for="a light, well-known baseline",
    ),
    ModelSpec(
        "pdq", "pdq", "pdqhash", output="hash", dim=256, storage="bit", licence="BSD-3-Clause", batch_size=256,
        near=1 - 31 / 256, good_for="copies: the same picture resized or re-encoded; no weights",
    ),
    ModelSpec(
        "palette", "palette", "cielab-1", output="histogram", dim=32, text=True, licence="Apache-2.0", batch_size=256,
        near=0.99, good_for="colours, by picture and by name (\"navy and gold\"); no weights",
    ),
)  # fmt: skip

PREFIXES = {"timm": "timm", "open_clip": "open_clip", "hf": "transformers"}


def names() -> list[str]:
    """The short names."""
    return [spec.name for spec in CATALOG]


def resolve(name: str, weights: str | None = None) -> ModelSpec:
    """Find the model of a short name or a prefixed one; ``weights`` is a local checkpoint to load instead.

    Raises ModelError with the nearest known names.
    """
    prefix, _, rest = name.partition(":")
    if rest and prefix in PREFIXES:
        spec = _prefixed(name, PREFIXES[prefix], rest)
    else:
        found = next((spec for spec in CATALOG if spec.name == name), None)
        if found is None:
            raise _unknown(name)
        spec = found
    return spec if weights is None else with_weights(spec, weights)


def with_weights(spec: ModelSpec, weights: str) -> ModelSpec:
    """The same model with a local file or folder to load; raises ModelError where there is none."""
    path = Path(weights).expanduser().resolve()
    if not path.exists():
        raise ModelError(f"there is no checkpoint at {path}", hint="give the file or folder that holds the weights")
    return replace(spec, weights=str(path))


def _prefixed(name: str, backend: str, rest: str) -> ModelSpec:
    """A model outside the table; a folder after the prefix is a local checkpoint."""
    if rest.startswith(("/", "./", "../", "~")):
        short = Path(rest).expanduser().resolve().name
        spec = with_weights(ModelSpec(f"{name.partition(':')[0]}:{short}", backend, short), rest)
    else:
        spec = ModelSpec(name, backend, rest)
    if backend == "timm":
        # timm averages the patches of these by default; their paper's vector is the class token
        return replace(spec, output="cls") if "dinov3" in rest and rest.startswith("vit") else spec
    return replace(spec, output="auto" if backend == "transformers" else "projection")


def _unknown(name: str) -> ModelError:
    near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.4)
    prefixes = ", ".join(f"{prefix}:NAME" for prefix in PREFIXES)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    return ModelError(
        f"unknown model: {name}",
        hint=f'{suggestion}see "pgimgsearch models list --all"; any other model goes by prefix: {prefixes}',
    )
