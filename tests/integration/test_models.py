"""Models: real architectures through our loading code give the reference library's vectors; what is stored is checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pgimgsearch.database import store
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.errors import ModelError
from pgimgsearch.models import catalog, encoder
from pgimgsearch.models.encoder import unit
from pgimgsearch.models.spec import Checkpoint, ModelSpec
from pgimgsearch.pipeline import register
from tests.pictures import photo

SIZES = [(320, 200), (200, 320), (224, 224), (37, 50), (640, 427)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = tmp_path_factory.mktemp("pictures")
    return [Image.open(photo(folder / f"{n}.png", seed=n, size=size)).convert("RGB") for n, size in enumerate(SIZES)]


def vectors(loaded: Any, pictures: list[Image.Image]) -> np.ndarray[Any, Any]:
    return unit(loaded.embed([loaded.prepare(picture) for picture in pictures]))


def assert_equal(ours: Any, reference: Any, least: float = 0.99999) -> None:
    cosines = (ours * unit(np.asarray(reference, dtype=np.float32))).sum(1)
    assert cosines.min() >= least, cosines


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "resnet18", "vit_small_patch16_dinov3"])
def test_timm_equals_its_own_transform_and_model(
    architecture: str, pictures: list[Image.Image], tmp_path: Path
) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model(architecture, pretrained=False).eval()  # with its classifier, as published checkpoints
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = encoder.load(catalog.resolve(f"timm:{architecture}", str(tmp_path / "w.safetensors")))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    with torch.inference_mode():
        features = network.forward_features(torch.stack([transform(picture) for picture in pictures]))
    # DINOv3's vector is the class token, not timm's average of the patches
    dinov3 = "dinov3" in architecture
    reference = features[:, 0] if dinov3 else network.forward_head(features, pre_logits=True)
    assert_equal(vectors(loaded, pictures), reference.detach())


def test_open_clip_equals_its_own_call(pictures: list[Image.Image], tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    network, _, transform = open_clip.create_model_and_transforms("RN50", pretrained=None)
    network.eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    loaded = encoder.load(catalog.resolve("open_clip:RN50", str(tmp_path / "weights.pt")))
    with torch.inference_mode():
        reference = network.encode_image(torch.stack([transform(picture) for picture in pictures]))
        texts = network.encode_text(open_clip.get_tokenizer("RN50")(["a red dress", "A DOG"]))
    assert_equal(vectors(loaded, pictures), reference)
    assert_equal(loaded.embed_text(["a red dress", "A DOG"]), texts)
    assert loaded.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


def tiny_clip(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "red": 4, "dress": 5, "dog": 6}
    network = CLIPModel(CLIPConfig(
        text_config=small | {"vocab_size": 7, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
        vision_config=small | {"image_size": 64, "patch_size": 16}, projection_dim=24)).eval()  # fmt: skip
    network.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return network


def test_transformers_clip_equals_its_own_call(pictures: list[Image.Image], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer

    network = tiny_clip(tmp_path)
    loaded = encoder.load(catalog.resolve(f"hf:{tmp_path}"))
    processor, tokenizer = (
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    with torch.inference_mode():
        images = network.get_image_features(**processor(pictures, return_tensors="pt")).pooler_output
        tokens = tokenizer(["a red dress", "dog"], padding=True, return_tensors="pt")
        texts = network.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
    assert_equal(
        vectors(loaded, pictures), images, 0.9999
    )  # its processor resizes tensors: within a grey level of Pillow
    assert_equal(loaded.embed_text(["a red dress", "dog"]), texts)
    assert (loaded.spec.dim, loaded.spec.text) == (24, True)


def test_transformers_dinov2_takes_the_class_token(pictures: list[Image.Image], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    network = Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14)
    ).eval()
    network.save_pretrained(tmp_path)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, resample=3).save_pretrained(
        tmp_path
    )
    loaded = encoder.load(catalog.resolve(f"hf:{tmp_path}"))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    with torch.inference_mode():
        answer = network(**processor(pictures, return_tensors="pt"))
    assert_equal(vectors(loaded, pictures), answer.pooler_output, 0.9999)
    spec = ModelSpec("mean", "transformers", "x", output="mean", weights=str(tmp_path))
    assert_equal(vectors(encoder.load(spec), pictures), answer.last_hidden_state.mean(1), 0.9999)
    assert not loaded.spec.text


def test_siglip_pads_to_its_full_length(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    network = SiglipModel(SiglipConfig(
        text_config=small | {"vocab_size": 6, "max_position_embeddings": 12, "projection_size": 32}, vision_config=small | {"image_size": 32, "patch_size": 16})).eval()  # fmt: skip
    network.save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2, "red": 3, "dog": 4, "<unk>": 5}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>").save_pretrained(tmp_path)
    loaded = encoder.load(catalog.resolve(f"hf:{tmp_path}"))
    with torch.inference_mode():
        reference = network.get_text_features(
            input_ids=torch.tensor([[2, 3, 4] + [0] * 9, [4] + [0] * 11])
        ).pooler_output
    assert_equal(loaded.embed_text(["a red dog", "dog"]), reference)
    assert loaded.logit_bias is not None
    assert loaded.preprocess["resize"] == "squash"


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("resnet18", num_classes=0).state_dict()
    state.pop("conv1.weight")
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ModelError, match=r"conv1\.weight is missing"):
        encoder.load(catalog.resolve("timm:resnet18", str(tmp_path / "less.pt")))
    with pytest.raises(ModelError, match=r"instead of|not expected|missing"):
        torch.save(timm.create_model("resnet34", num_classes=0).state_dict(), tmp_path / "other.pt")
        encoder.load(catalog.resolve("timm:resnet18", str(tmp_path / "other.pt")))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        encoder.load(catalog.resolve("timm:resnet18", str(tmp_path / "cut.safetensors")))


class Evil:
    """What a hostile checkpoint holds."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/pgimgsearch-was-here"),))


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        encoder.load(catalog.resolve("timm:resnet18", str(tmp_path / "evil.pt")))
    assert not Path("/tmp/pgimgsearch-was-here").exists()


def test_a_truncated_repository_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_clip(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights: visual_projection\.weight"):
        encoder.load(catalog.resolve(f"hf:{tmp_path}"))


@pytest.fixture
def two_resnets(tmp_path: Path) -> list[str]:
    import timm

    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / f"{seed}.pt")
        made.append(str(tmp_path / f"{seed}.pt"))
    return made


def test_other_weights_never_mix_with_those_stored(url: str, two_resnets: list[str]) -> None:
    first, second = two_resnets
    with connect(url) as connection:
        added = register.open_model(connection, "timm:resnet10t", Checkpoint(first))
        again = register.open_model(connection, "timm:resnet10t")
        assert again.stored.fingerprint == added.stored.fingerprint
        assert again.stored.weights == first
        with pytest.raises(ModelError, match="the weights differ") as raised:
            register.open_model(connection, "timm:resnet10t", Checkpoint(second))
        assert "models add" in str(raised.value.hint)


def test_add_show_alias_and_remove(cli: Callable[..., Any], connection: Connection, two_resnets: list[str]) -> None:
    added = cli("--json", "models", "add", "timm:resnet10t", "--weights", two_resnets[0], "--as", "Mine 1")
    assert '"table": "imgsearch.embedding_mine_1_512"' in added.stdout, added.stderr
    assert cli("models", "add", "timm:resnet10t", "--weights", two_resnets[0], "--as", "Mine 1").returncode == 2
    assert '"dim": 512' in cli("--json", "models", "show", "default").stdout
    cli("models", "add", "palette")
    assert store.aliases(connection) == {"default": "Mine 1", "text": "palette"}
    refused = cli("models", "remove", "Mine 1", "--yes")
    assert refused.returncode == 5
    assert "in use by alias default" in refused.stderr
    cli("models", "alias", "default", "palette")
    assert cli("models", "remove", "Mine 1", "--yes").returncode == 0
    assert connection.execute(
        "select to_regclass('imgsearch.embedding_mine_1_512'), to_regclass('imgsearch.images_mine_1')"
    ).fetchone() == (None, None)
    assert connection.execute(
        "select array_agg(model_name order by history_id) from imgsearch.alias_history where alias = 'default'"
    ).fetchone() == (["Mine 1", "palette"],)
    listed = cli("models", "list", "--all").stdout
    assert all(name in listed for name in catalog.names())


def test_names_that_collide_or_are_long_get_tables_of_their_own(connection: Connection) -> None:
    from benchmarks.harness import add_model

    made = [add_model(connection, name, 8) for name in ("a-b", "a.b", "x" * 90, "x" * 91)]
    assert len({model.table_name for model in made}) == 4
    assert all(
        len(model.table_name) <= 63
        and connection.execute("select to_regclass(%s)", [f"imgsearch.{model.table_name}"]).fetchone() != (None,)
        for model in made
    )


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("dinov3", "could not be downloaded", "--weights"),
        ("dinov3-hf", "could not be downloaded", 'the open alternative is "dinov3"'),
        ("timm:no_such_model", "timm has no model", "list_models"),
        ("open_clip:ViT-B-32/no_such_tag", "no weights no_such_tag", "laion2b_s34b_b79k"),
        ("open_clip:NoSuchArch/x", "no architecture NoSuchArch", "open_clip:ViT-B-32/"),
        ("hf:someone/nothing", "could not be downloaded", "--weights"),
    ],
)
def test_what_cannot_be_fetched_is_said(name: str, message: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # as without a network
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=message) as raised:
        encoder.load(catalog.resolve(name))
    assert hint in str(raised.value.hint)


def test_a_gated_model_names_the_open_one() -> None:
    from huggingface_hub.errors import GatedRepoError

    from pgimgsearch.models.weights import loading

    class Answer:
        status_code, headers, text, request = 403, {"x-request-id": "1"}, "", None

    with pytest.raises(ModelError, match="gated") as raised, loading(catalog.resolve("dinov3-hf")):
        raise OSError("You are trying to access a gated repo.") from GatedRepoError("403", response=Answer())  # type: ignore[arg-type]
    assert "hf auth login" in str(raised.value.hint)
    assert '"dinov3"' in str(raised.value.hint)
