"""What must not be loaded is refused, in words that name it, before anything is written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pgimgsearch.errors import ModelError
from pgimgsearch.models import lookup
from pgimgsearch.models.load import load
from pgimgsearch.models.spec import Checkpoint
from tests.models.tiny import save, tiny


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("resnet18", num_classes=0).state_dict()
    state.pop("conv1.weight")
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ModelError, match=r"conv1\.weight is missing"):
        load(lookup.resolve("timm:resnet18", Checkpoint(str(tmp_path / "less.pt"))))
    with pytest.raises(ModelError, match=r"instead of|not expected|missing"):
        torch.save(timm.create_model("resnet34", num_classes=0).state_dict(), tmp_path / "other.pt")
        load(lookup.resolve("timm:resnet18", Checkpoint(str(tmp_path / "other.pt"))))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        load(lookup.resolve("timm:resnet18", Checkpoint(str(tmp_path / "cut.safetensors"))))


class Evil:
    """What a hostile checkpoint holds."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/pgimgsearch-was-here"),))


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        load(lookup.resolve("timm:resnet18", Checkpoint(str(tmp_path / "evil.pt"))))
    assert not Path("/tmp/pgimgsearch-was-here").exists()


def test_a_truncated_repository_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(tmp_path, *tiny("clip-vit-b-32"))
    state = load_file(tmp_path / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"visual_projection\.weight is missing"):
        load(lookup.resolve(f"hf:{tmp_path}"))


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
        load(lookup.resolve(name))
    assert hint in str(raised.value.hint)


def test_a_gated_model_names_the_open_one() -> None:
    from huggingface_hub.errors import GatedRepoError

    from pgimgsearch.models.weights.load_state import loading

    class Answer:
        status_code, headers, text, request = 403, {"x-request-id": "1"}, "", None

    with pytest.raises(ModelError, match="gated") as raised, loading(lookup.resolve("dinov3-hf")):
        raise OSError("You are trying to access a gated repo.") from GatedRepoError("403", response=Answer())  # type: ignore[arg-type]
    assert "hf auth login" in str(raised.value.hint)
    assert '"dinov3"' in str(raised.value.hint)


def test_what_a_library_only_warns_of_is_an_error() -> None:
    import logging
    import warnings

    from pgimgsearch.models.weights.load_state import loading

    with (
        pytest.raises(ModelError, match="gave a warning: QuickGELU mismatch"),
        loading(lookup.resolve("clip-vit-b-32")),
    ):
        warnings.warn("QuickGELU mismatch between final model config and tag", UserWarning, stacklevel=1)
    with pytest.raises(ModelError, match="initialized partially"), loading(lookup.resolve("clip-vit-b-32")):
        logging.getLogger().warning("Model ViT-B-32 initialized partially.")
    handlers = logging.getLogger("transformers").handlers
    with loading(lookup.resolve("clip-vit-b-32")):
        logging.getLogger("transformers").warning("something harmless")
    assert logging.getLogger("transformers").handlers is handlers


def test_weights_that_nothing_asked_for_are_refused_but_a_classifiers_head_is_left_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(tmp_path, *tiny("dinov2-base"))
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"classifier.weight": torch.zeros(3, 64)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert load(lookup.resolve(f"hf:{tmp_path}")).dims == {"cls": 32, "mean": 32}
    save_file(state | {"encoder.layer.7.norm1.bias": torch.zeros(32)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"encoder\.layer\.7.* is not expected"):
        load(lookup.resolve(f"hf:{tmp_path}"))


def test_imagebind_without_its_towers_is_refused(tmp_path: Path) -> None:
    from tests.support import checkpoints

    state = checkpoints.imagebind_shapes(
        "cpu", width=160, layers=1, text_width=128, text_layers=1, dim=48, grid=4, patch=56
    )
    torch.save({"modality_trunks.audio.x": torch.zeros(1)}, tmp_path / "audio.pth")
    with pytest.raises(ModelError, match="no ImageBind image tower"):
        load(lookup.resolve("imagebind-huge", Checkpoint(str(tmp_path / "audio.pth"))))
    state.pop("modality_trunks.text.blocks.0.norm_2.weight")
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ModelError, match=r"transformer\.resblocks\.0\.ln_2\.weight is missing"):
        load(lookup.resolve("imagebind-huge", Checkpoint(str(tmp_path / "less.pth"))))


def test_torchscript_is_code_and_loaded_only_on_trust(tmp_path: Path) -> None:
    from pgimgsearch.models.backends import sscd

    torch.manual_seed(0)
    network = sscd.create(512).eval()
    path = str(tmp_path / "sscd.torchscript.pt")
    torch.jit.trace(network, torch.zeros(1, 3, 320, 320)).save(path)
    with pytest.raises(ModelError, match="is TorchScript") as raised:
        load(lookup.resolve("sscd-disc-mixup", Checkpoint(path)))
    assert "--trust" in str(raised.value.hint)
    assert load(lookup.resolve("sscd-disc-mixup", Checkpoint(path, trust=True))).dims == {"descriptor": 512}


def test_a_path_with_an_at_sign_names_no_output(tmp_path: Path) -> None:
    folder = tmp_path / "team@home" / "model"
    folder.mkdir(parents=True)
    assert lookup.resolve(f"hf:{folder}").weights == str(folder)
    assert lookup.resolve(f"hf:{folder}@mean").output == "mean"
    with pytest.raises(ModelError, match="no output mean") as raised:
        lookup.resolve("clip-vit-b-32@mean")
    assert "projection, hidden" in str(raised.value.hint)
    with pytest.raises(ModelError, match="not stored yet") as raised:
        lookup.resolve("dinov3@256")
    assert "--dim 256" in str(raised.value.hint)


@pytest.mark.parametrize("name", ["palette@hidden", "pdq@foo", "resnet50@cls"])
def test_a_builtin_or_a_network_has_no_other_outputs_than_its_row_says(name: str) -> None:
    with pytest.raises(ModelError, match="has no output"):
        lookup.resolve(name)


def test_preprocessing_is_said_only_where_the_checkpoint_does_not(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="says itself"):
        lookup.resolve("timm:mobilenetv2_100", Checkpoint(preprocess="clip"))
    with pytest.raises(ModelError, match="unknown preprocessing: else"):
        lookup.resolve("onnx:org/repo", Checkpoint(preprocess="else"))


@pytest.mark.parametrize("setting", [{"include_top": True}, {"do_pad": True}, {"do_resize": False}])
def test_a_processor_that_does_more_or_less_than_ours_is_refused(setting: dict[str, bool]) -> None:
    from pgimgsearch.models.hf_processor import preprocess_of
    from tests.support import checkpoints

    settings = checkpoints.processor_of(lookup.resolve("clip-vit-b-32"))
    assert preprocess_of(settings).size == (224, 224)
    with pytest.raises(ModelError, match="image processor is not supported"):
        preprocess_of(settings | setting)


def test_a_squashed_picture_is_cropped_as_timm_does(pictures: list[Any]) -> None:
    import numpy as np
    import timm

    from pgimgsearch.models.backends.timm import preprocess_of
    from pgimgsearch.models.preprocess import to_array

    network = timm.create_model("resnet18", pretrained_cfg_overlay={"crop_mode": "squash", "crop_pct": 0.875})
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    for picture in pictures:
        assert np.allclose(to_array(picture, preprocess_of(network)), transform(picture), atol=1e-5)
