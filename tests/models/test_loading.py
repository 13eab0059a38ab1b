"""What must not be loaded is refused, in words that name it, before anything is written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pgimgsearch.errors import ModelError
from pgimgsearch.models import catalog, encoder
from pgimgsearch.models.spec import Checkpoint
from tests.models.tiny import save, tiny


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("resnet18", num_classes=0).state_dict()
    state.pop("conv1.weight")
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ModelError, match=r"conv1\.weight is missing"):
        encoder.load(catalog.resolve("timm:resnet18", Checkpoint(str(tmp_path / "less.pt"))))
    with pytest.raises(ModelError, match=r"instead of|not expected|missing"):
        torch.save(timm.create_model("resnet34", num_classes=0).state_dict(), tmp_path / "other.pt")
        encoder.load(catalog.resolve("timm:resnet18", Checkpoint(str(tmp_path / "other.pt"))))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        encoder.load(catalog.resolve("timm:resnet18", Checkpoint(str(tmp_path / "cut.safetensors"))))


class Evil:
    """What a hostile checkpoint holds."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/pgimgsearch-was-here"),))


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        encoder.load(catalog.resolve("timm:resnet18", Checkpoint(str(tmp_path / "evil.pt"))))
    assert not Path("/tmp/pgimgsearch-was-here").exists()


def test_a_truncated_repository_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(tmp_path, *tiny("clip-vit-b-32"))
    state = load_file(tmp_path / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"visual_projection\.weight is missing"):
        encoder.load(catalog.resolve(f"hf:{tmp_path}"))


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
