"""Every row of the catalog is what it says: full-size networks on the meta device, and a proof for each row."""

import re
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg

from pgimgsearch.models import catalog, lookup
from pgimgsearch.models import catalog_table as table
from pgimgsearch.models.backends import backends, imagebind
from pgimgsearch.models.backends import open_clip as open_clip_backend
from pgimgsearch.models.backends import sscd as sscd_backend
from pgimgsearch.models.backends import timm as timm_backend
from pgimgsearch.models.backends import transformers as transformers_backend
from pgimgsearch.models.hf_processor import preprocess_of
from pgimgsearch.models.spec import ModelSpec
from tests.support import checkpoints

ROWS = {spec.name: spec for spec in catalog.CATALOG}
NETWORKS = [spec for spec in catalog.CATALOG if backends()[spec.backend].on_torch]
# Names of weights that published checkpoints of a family hold: of its stem, its last layer and its end.
KEYS = {
    "dinov3": ("cls_token", "reg_token", "patch_embed.proj.weight", "blocks.{last}.attn.qkv.weight", "norm.weight"),
    "dinov3-convnext": ("stem.0.weight", "stages.3.blocks.2.conv_dw.weight", "head.norm.weight"),
    "dinov3-hf": ("embeddings.cls_token", "embeddings.register_tokens", "layer.{last}.attention.q_proj.weight",
                  "norm.weight"),
    "dinov2": ("embeddings.cls_token", "embeddings.position_embeddings",
               "encoder.layer.{last}.attention.attention.query.weight", "layernorm.weight"),
    "clip": ("vision_model.embeddings.class_embedding", "vision_model.encoder.layers.{last}.self_attn.q_proj.weight",
             "visual_projection.weight", "text_projection.weight", "logit_scale"),
    "siglip": ("vision_model.embeddings.patch_embedding.weight", "vision_model.head.probe", "logit_scale",
               "logit_bias", "text_model.head.weight", "vision_model.encoder.layers.{last}.self_attn.q_proj.weight"),
    "openclip": ("visual.conv1.weight", "visual.transformer.resblocks.{last}.attn.in_proj_weight", "visual.proj"),
    "imagebind": ("visual.ln_pre.weight", "visual.transformer.resblocks.31.mlp.c_fc.weight", "visual.proj",
                  "transformer.resblocks.23.attn.in_proj_weight", "text_projection"),
    "resnet": ("conv1.weight", "layer4.2.bn3.running_var"),
    "sscd": ("conv1.weight", "layer4.2.bn3.running_var", "fc.weight", "fc.bias"),
    "efficientnet": ("conv_stem.weight", "conv_head.weight", "bn2.running_mean"),
    "mobilenet": ("conv_stem.weight", "conv_head.weight", "bn2.running_mean"),
    "vit": ("cls_token", "pos_embed", "blocks.{last}.mlp.fc2.weight", "norm.weight"),
}  # fmt: skip


def family(spec: ModelSpec) -> str:
    if "convnext" in spec.name:
        return "dinov3-convnext"
    if spec.name.startswith("dinov3"):
        return "dinov3-hf" if spec.name.endswith("-hf") else "dinov3"
    found = re.match(r"openclip|imagebind|siglip|clip|dinov2|sscd|resnet|efficientnet|mobilenet|vit", spec.name)
    assert found, f"{spec.name} belongs to no family with known weights: add it to KEYS"
    return found[0]


def test_every_system_has_a_row() -> None:
    needed = {
        "dinov3", "dinov3-vits16", "dinov3-vits16plus", "dinov3-vitb16", "dinov3-vith16plus", "dinov3-vit7b16",
        "dinov3-vitl16-sat493m", "dinov3-convnext-tiny", "dinov3-convnext-small", "dinov3-convnext-base",
        "dinov3-convnext-large", "dinov3-hf", "dinov2-small", "dinov2-base", "dinov2-large", "dinov2-giant",
        "dinov2-small-reg", "dinov2-base-reg", "dinov2-large-reg", "dinov2-giant-reg", "dinov2-vits14-onnx",
        "clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "openclip-vit-b-32-laion2b", "siglip-b-16-224",
        "siglip2-b-16-224", "siglip2-b-16-256", "siglip2-b-16-384", "siglip2-b-16-512", "siglip2-l-16-256",
        "siglip2-so400m-14-384", "imagebind-huge", "resnet50", "efficientnet-b4", "efficientnet-b7", "vit-s-16",
        "vit-b-16", "vit-l-16", "sscd-disc-mixup", "pdq", "palette",
    }  # fmt: skip
    assert needed <= ROWS.keys()
    assert lookup.resolve("dinov3-vitl16").name == "dinov3"


def test_the_table_of_the_documents_is_that_of_the_catalog() -> None:
    document = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert table.insert(document) == document, "run: python -m pgimgsearch.models.catalog_table"


def test_no_row_is_without_a_proof() -> None:
    assert all(spec.proof in {"exact", "architecture"} for spec in catalog.CATALOG)
    shown = {spec.name for spec in NETWORKS} | {"pdq", "palette", "dinov2-vits14-onnx"}
    assert shown == ROWS.keys(), "a row that no test here looks at"


@pytest.mark.slow
@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_the_full_size_network_is_what_the_row_says(spec: ModelSpec, text_towers: None) -> None:
    network = checkpoints.network_of(spec, "meta")
    classifier = (spec.dim + 1) / 1000 if spec in catalog.SUPERVISED else 0  # a thousand classes, which cards count
    assert checkpoints.counted(network) + classifier == pytest.approx(spec.parameters, rel=0.05)
    names = published(spec, network)
    layers = {int(n) for name in names for n in re.findall(r"(?:visual.*resblocks|blocks|layers?)\.(\d+)\.", name)}
    for key in KEYS[family(spec)]:
        assert key.replace("{last}", str(max(layers, default=0))) in names, key
    size, outputs = looked_at(spec, network)
    assert size == spec.size
    assert outputs[spec.output] == spec.dim
    assert {name: outputs[name] for name in spec.also} == spec.also


def published(spec: ModelSpec, network: torch.nn.Module) -> set[str]:
    """The names of the weights as they are in files: transformers has others inside."""
    if spec.backend != "transformers":
        return set(network.state_dict())
    from transformers.core_model_loading import revert_weight_conversion

    return set(revert_weight_conversion(network, network.state_dict()))


def looked_at(spec: ModelSpec, network: torch.nn.Module) -> tuple[int, dict[str, int]]:
    """The input size, and the dimensions of the outputs by a forward pass without numbers."""
    if spec.backend == "timm":
        size = timm_backend.preprocess_of(network).size[0]
        output = "cls" if "vit" in spec.checkpoint else "pool"
        return size, {output: network.eval()(torch.empty(1, 3, size, size, device="meta")).shape[1]}
    if spec.backend == "transformers":
        size = preprocess_of(checkpoints.processor_of(spec)).size[0]
        see = transformers_backend.vision(network.eval())
    elif spec.backend == "sscd":
        assert spec.preprocess
        size, see = spec.preprocess.size[0], sscd_backend.descriptor(network.eval())
    else:
        size = 224 if spec.backend == "imagebind" else open_clip_backend.preprocess_of(network).size[0]
        see = lambda pixels: {"projection": network.eval().encode_image(pixels)}  # noqa: E731
    outputs = see(torch.empty(1, 3, size, size, device="meta"))
    return size, {name: vectors.shape[1] for name, vectors in outputs.items()}


@pytest.mark.slow
def test_every_pair_of_open_clip_is_loaded_as_its_tag_says(text_towers: None) -> None:
    """Activation, preprocessing and dimension of all pairs the library lists; architectures are built on paper once."""
    pairs = open_clip.list_pretrained()
    assert len(pairs) >= 196
    built: dict[tuple[object, ...], torch.nn.Module] = {}
    quick = 0
    for architecture, tag in pairs:
        spec = lookup.resolve(f"open_clip:{architecture}/{tag}")
        config = get_pretrained_cfg(architecture, tag)
        origin = open_clip_backend.origin(spec)
        assert origin.place == config["hf_hub"].rpartition("/")[0]
        wants = bool(config.get("quick_gelu") or open_clip.get_model_config(architecture).get("quick_gelu"))
        key = (architecture, wants, config["mean"], config["std"], config["interpolation"], config["resize_mode"])
        if key not in built:
            built[key] = open_clip_backend.create(architecture, tag, "meta")
        network = built[key]
        preprocess = open_clip_backend.preprocess_of(network)
        assert preprocess.mean == tuple(config["mean"]), (architecture, tag)
        assert preprocess.std == tuple(config["std"])
        assert (preprocess.interpolation, preprocess.resize) == (config["interpolation"], config["resize_mode"])
        assert ("QuickGELU" in {type(module).__name__ for module in network.modules()}) == wants, (architecture, tag)
        quick += wants
        height, width = preprocess.size
        vector = network.eval().encode_image(torch.empty(1, 3, height, width, device="meta"))
        assert vector.shape[1] == open_clip.get_model_config(architecture)["embed_dim"], (architecture, tag)
    assert quick >= 28


def test_satellite_pictures_have_a_mean_of_their_own() -> None:
    means = {
        name: timm_backend.preprocess_of(checkpoints.network_of(ROWS[name], "meta")).mean
        for name in ("dinov3", "dinov3-vitl16-sat493m")
    }
    assert means == {"dinov3": (0.485, 0.456, 0.406), "dinov3-vitl16-sat493m": (0.430, 0.411, 0.296)}


def test_imagebind_leaves_out_the_other_senses_and_nothing_else() -> None:
    shapes = checkpoints.imagebind_shapes("meta")
    translated = imagebind.translate(shapes)
    assert len(translated) == len(shapes) - 2  # the mask, and a weight of the audio tower
    assert translated.keys() == checkpoints.network_of(ROWS["imagebind-huge"], "meta").state_dict().keys()
