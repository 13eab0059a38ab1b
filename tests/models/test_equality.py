"""Tiny checkpoints of the real architectures, through our loading code, give the vectors of the libraries' own calls."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers as hf
from PIL import Image

from pgimgsearch.models import lookup, reference
from pgimgsearch.models.backends import backend_module
from pgimgsearch.models.encoder import Placement, unit
from pgimgsearch.models.load import load
from pgimgsearch.models.spec import Checkpoint, ModelSpec
from tests.conftest import data_folder
from tests.models.tiny import OPEN_CLIP, SMALL, VISION, describe, save, settle, tiny
from tests.support import checkpoints

LEAST = 0.99999
CANONICAL = [0.010023, 0.027708, 0.037821, 0.032088, 0.002107, 0.017384]
CPU = Placement("cpu", "fp32")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def shown(request: pytest.FixtureRequest, pictures: list[Image.Image]) -> list[Image.Image]:
    """Drawn images, and real ones of every kind where there is test data."""
    return pictures + (request.getfixturevalue("real_pictures") if data_folder().is_dir() else [])


def equal(spec: ModelSpec, pictures: list[Image.Image], outputs: set[str], least: float = LEAST) -> Any:
    """Compare a model with its reference, whose outputs must be those; returns ours."""
    ours = load(spec, CPU)
    found = reference.compare_loaded(ours, backend_module(spec.backend).reference(spec), pictures, reference.TEXTS)
    assert found.cosines.keys() == outputs
    assert min(found.cosines.values()) >= least, found
    assert found.grey_levels <= 1.0, found
    return ours


TIMM = [
    "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3", "convnext_tiny.dinov3_lvd1689m", "resnet26", "efficientnet_b0", "tf_efficientnet_b0",
    "vit_tiny_patch16_224", "mobilenetv2_100",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TIMM)
def test_timm(architecture: str, shown: list[Image.Image], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(architecture)  # with its classifier, where it has one, as published checkpoints
    settle(network)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    spec = lookup.resolve(f"timm:{architecture}", Checkpoint(str(tmp_path / "weights.pt")))
    equal(spec, shown, {"cls" if architecture.startswith("vit") else "pool"})


@pytest.mark.parametrize(
    ("family", "outputs"),
    [
        ("dinov2-base", {"cls", "mean"}), ("dinov2-giant", {"cls", "mean"}), ("dinov2-base-reg", {"cls", "mean"}),
        ("dinov3-hf", {"cls", "mean"}), ("clip-vit-b-32", {"projection", "hidden", "text"}),
        ("siglip-b-16-224", {"projection", "text"}), ("siglip2-b-16-224", {"projection", "text"}),
    ],
)  # fmt: skip
def test_transformers(family: str, outputs: set[str], shown: list[Image.Image], tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(tmp_path, *tiny(family))
    ours = equal(lookup.resolve(f"hf:{tmp_path}"), shown, outputs)
    assert ours.reads_text == ("text" in outputs)


def test_clip_and_open_clip_read_the_same_tokens(tmp_path: Path) -> None:
    """The same words to the same numbers by two libraries: the tokenizer's files are right, and so is our use of it."""
    from pgimgsearch.models.backends.transformers import tokenize

    checkpoints.clip_tokenizer(tmp_path)
    config = hf.CLIPConfig(text_config={"max_position_embeddings": 77})
    long = "very " * 100 + "long"
    texts = [*reference.TEXTS, "  TWO   spaces ", "it's 3.5€ (50% off)", long]
    ours = tokenize(hf.AutoTokenizer.from_pretrained(tmp_path), config)(texts)
    theirs = open_clip.get_tokenizer("ViT-B-32")(texts)
    for row, mask, expected in zip(ours["input_ids"], ours["attention_mask"], theirs, strict=True):
        length = int(mask.sum())
        assert row[:length].tolist() == expected[:length].tolist()
        assert not expected[length:].any()


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_open_clip(kind: str, shown: list[Image.Image], tmp_path: Path) -> None:
    torch.manual_seed(0)
    describe(tmp_path, OPEN_CLIP[kind], squash=kind == "siglip")
    network = open_clip.create_model(f"local-dir:{tmp_path}")
    settle(network)
    torch.save(network.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    ours = equal(lookup.resolve(f"open_clip:{tmp_path}"), shown, {"projection", "text"})
    assert (ours.logit_bias is not None) == (kind == "siglip")
    assert ours.preprocess["resize"] == ("squash" if kind == "siglip" else "shortest")


def test_open_clip_with_a_text_tower_and_tokenizer_of_the_hub(shown: list[Image.Image], tmp_path: Path) -> None:
    """As xlm-roberta-base-ViT-B-32: the multilingual tower and its tokenizer come from another repository."""
    torch.manual_seed(0)
    words = tmp_path / "words"
    hf.XLMRobertaConfig(**SMALL, vocab_size=104, max_position_embeddings=90, pad_token_id=0).save_pretrained(words)
    checkpoints.sentence_pieces(tmp_path)
    text = {"hf_model_name": str(words), "hf_tokenizer_name": str(words), "hf_proj_type": "mlp",
            "hf_pooler_type": "mean_pooler", "context_length": 77}  # fmt: skip
    describe(tmp_path, {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text})
    network = open_clip.create_model(f"local-dir:{tmp_path}", pretrained_text=False)
    torch.save(network.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    equal(lookup.resolve(f"open_clip:{tmp_path}"), shown, {"projection", "text"})


def test_a_tag_brings_its_activation_and_preprocessing(
    pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tag's config, where ``create_model`` alone gives plain GELU and CLIP's mean."""
    tag = {"hf_hub": "someone/something/", "quick_gelu": True, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4),
           "interpolation": "bilinear", "resize_mode": "squash"}  # fmt: skip
    (tmp_path / "Tiny.json").write_text(json.dumps(OPEN_CLIP["vit"]))
    open_clip.add_model_config(tmp_path / "Tiny.json")
    monkeypatch.setattr("open_clip.pretrained.get_pretrained_cfg", lambda *_: tag)
    torch.manual_seed(0)
    network = open_clip.create_model("Tiny", force_quick_gelu=True)
    torch.save(network.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    monkeypatch.setattr("pgimgsearch.models.weights.download.download", lambda _: tmp_path)
    ours = load(lookup.resolve("open_clip:Tiny/some_tag"), CPU)
    how = open_clip.image_transform(64, is_train=False, mean=tag["mean"], std=tag["std"], resize_mode="squash",
                                    interpolation="bilinear")  # fmt: skip
    pixels = torch.stack([how(picture) for picture in pictures])
    assert np.allclose(np.stack([ours.prepare(picture) for picture in pictures]), pixels, atol=1 / 255)
    with torch.inference_mode():
        expected = network.eval().encode_image(pixels)
    assert cosine(ours.embed(list(pixels.numpy()))["projection"], expected) >= LEAST


def cosine(ours: Any, theirs: torch.Tensor) -> float:
    return float((unit(ours) * unit(theirs.detach().float().numpy())).sum(1).min())


@pytest.fixture
def imagebind_weights(tmp_path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    sizes = {"width": 160, "layers": 2, "text_width": 128, "text_layers": 2, "dim": 48, "grid": 4, "patch": 56}
    state = checkpoints.imagebind_shapes("cpu", **sizes)
    torch.save(state, tmp_path / "imagebind.pth")
    return str(tmp_path / "imagebind.pth"), state


def test_imagebind_equals_its_own_arithmetic_rebuilt(
    imagebind_weights: tuple[str, dict[str, torch.Tensor]], shown: list[Image.Image]
) -> None:
    """Both towers of one checkpoint, against the published arithmetic written out on ImageBind's own weights."""
    path, state = imagebind_weights
    spec = replace(lookup.resolve("imagebind-huge", Checkpoint(path)), dim=48)
    ours = load(spec, CPU)
    from torchvision import transforms

    how = transforms.Compose([
        transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ])  # fmt: skip
    pixels = torch.stack([how(picture) for picture in shown])
    prepared = [ours.prepare(picture) for picture in shown]
    assert np.abs(np.stack(prepared) - pixels.numpy()).max() < 1e-5
    assert cosine(ours.embed(prepared)["projection"], imagebind_image(state, pixels)) >= LEAST
    tokens = open_clip.get_tokenizer("ViT-H-14")(list(reference.TEXTS))
    assert cosine(ours.embed_text(reference.TEXTS), imagebind_text(state, tokens)) >= LEAST
    assert ours.logit_scale == pytest.approx(np.exp(2.66), rel=1e-3)


def norm(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def trunk(
    state: dict[str, torch.Tensor], tower: str, x: torch.Tensor, heads: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """Pre-norm transformer blocks as the paper's code has them: (n, tokens, width)."""
    for layer in range(2):
        block = f"modality_trunks.{tower}.blocks.{layer}"
        n, tokens, width = x.shape
        packed = norm(state, f"{block}.norm_1", x) @ state[f"{block}.attn.in_proj_weight"].T
        q, k, v = (packed + state[f"{block}.attn.in_proj_bias"]).reshape(n, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
        attended = (scores if mask is None else scores + mask).softmax(-1) @ v
        joined = attended.transpose(1, 2).reshape(n, tokens, width)
        x = x + joined @ state[f"{block}.attn.out_proj.weight"].T + state[f"{block}.attn.out_proj.bias"]
        inner = norm(state, f"{block}.norm_2", x) @ state[f"{block}.mlp.fc1.weight"].T + state[f"{block}.mlp.fc1.bias"]
        x = x + torch.nn.functional.gelu(inner) @ state[f"{block}.mlp.fc2.weight"].T + state[f"{block}.mlp.fc2.bias"]
    return x


def imagebind_image(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    film = pixels.unsqueeze(2).repeat(1, 1, 2, 1, 1)  # an image is a film of two equal frames
    kernel = state["modality_preprocessors.vision.rgbt_stem.proj.1.weight"]
    patches = torch.nn.functional.conv3d(film, kernel, stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    first = state["modality_preprocessors.vision.cls_token"].expand(len(pixels), -1, -1)
    tokens = torch.cat([first, patches], 1) + state["modality_preprocessors.vision.pos_embedding_helper.pos_embed"]
    tokens = trunk(state, "vision", norm(state, "modality_trunks.vision.pre_transformer_layer.0", tokens), 2, None)
    return norm(state, "modality_heads.vision.0", tokens)[:, 0] @ state["modality_heads.vision.2.weight"].T


def imagebind_text(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    x = state["modality_preprocessors.text.token_embedding.weight"][tokens]
    mask = torch.full((77, 77), float("-inf")).triu(1)
    x = trunk(state, "text", x + state["modality_preprocessors.text.pos_embed"], 2, mask)
    ends = x[torch.arange(len(x)), tokens.argmax(-1)]
    return norm(state, "modality_heads.text.proj.0", ends) @ state["modality_heads.text.proj.1.weight"].T


@pytest.mark.parametrize("prefix", ["backbone.", pytest.param("", marks=pytest.mark.slow)])
def test_sscd_equals_its_own_arithmetic_rebuilt(prefix: str, shown: list[Image.Image], tmp_path: Path) -> None:
    from torchvision import models, transforms

    torch.manual_seed(0)
    network = models.resnet50(num_classes=512)
    settle(network)
    torch.save({prefix + name: tensor for name, tensor in network.state_dict().items()}, tmp_path / "sscd.pt")
    ours = load(lookup.resolve("sscd-disc-mixup", Checkpoint(str(tmp_path / "sscd.pt"))), CPU)
    how = transforms.Compose([
        transforms.Resize([320, 320]), transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ])  # fmt: skip
    pixels = torch.stack([how(picture) for picture in shown])
    body = torch.nn.Sequential(*list(network.eval().children())[:-2])
    with torch.inference_mode():
        maps = body(pixels).flatten(2)
        expected = network.fc((maps.clamp(min=1e-6) ** 3).mean(2) ** (1 / 3))
    prepared = [ours.prepare(picture) for picture in shown]
    assert np.abs(np.stack(prepared) - pixels.numpy()).max() < 1e-5
    assert cosine(ours.embed(prepared)["descriptor"], expected) >= LEAST


def test_real_weights_of_timm(data: Path, real_pictures: list[Image.Image]) -> None:
    weights = Checkpoint(str(data / "weights" / "mobilenetv2_100_backbone_timm.safetensors"))
    equal(lookup.resolve("mobilenetv2", weights), real_pictures, {"pool"})


def test_real_weights_of_open_clip(data: Path, real_pictures: list[Image.Image]) -> None:
    spec = lookup.resolve(f"open_clip:{data}/weights/openclip-mbv2-tiny")
    equal(spec, real_pictures, {"projection", "text"})


def test_real_weights_on_onnx_runtime_are_those_of_torch(data: Path, real_pictures: list[Image.Image]) -> None:
    """The same network by ONNX Runtime, called by hand, and by our backend; and both by torch."""
    import onnxruntime

    path = data / "weights" / "mobilenetv2_100_features_1280.onnx"
    ours = load(lookup.resolve(f"onnx:{path}", Checkpoint(preprocess="imagenet")), CPU)
    torch_weights = Checkpoint(str(data / "weights" / "mobilenetv2_100_backbone_timm.safetensors"))
    other = load(lookup.resolve("mobilenetv2", torch_weights), CPU)
    prepared = [ours.prepare(picture) for picture in real_pictures]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (by_hand,) = session.run(["features"], {"pixel_values": np.stack(prepared)})
    vectors = ours.embed(prepared)["vector"]
    assert cosine(vectors, torch.from_numpy(by_hand)) >= LEAST
    assert cosine(vectors, torch.from_numpy(other.embed([other.prepare(p) for p in real_pictures])["pool"])) >= LEAST


def test_canonical_vector_of_real_weights(data: Path) -> None:
    """The first numbers of a drawn image's vector, as timm 1.0.31 and torch 2.15 gave them on a CPU."""
    from pgimgsearch.models.canary import images as drawn

    path = data / "weights" / "mobilenetv2_100_backbone_timm.safetensors"
    ours = load(lookup.resolve("mobilenetv2", Checkpoint(str(path))), CPU)
    vector = unit(ours.embed([ours.prepare(drawn()[0])])["pool"])[0]
    assert vector[:6] == pytest.approx(CANONICAL, abs=1e-4)
