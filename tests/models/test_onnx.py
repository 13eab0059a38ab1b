"""ONNX exports as people have them: with tokens, with a fixed batch, in half precision, and those that are no embedders."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models import encoder, lookup
from pgimgsearch.models import load as models_load
from pgimgsearch.models.encoder import Placement, unit
from pgimgsearch.models.spec import Checkpoint
from tests.support import checkpoints

pytestmark = pytest.mark.slow

IMAGENET = Checkpoint(preprocess="imagenet")
SIDE = 32


def export(
    path: Path,
    shape: Sequence[int | str],
    name: str = "output",
    batch: int | str = "batch",
    kind: int = TensorProto.FLOAT,
) -> Path:
    """A model whose output is the first pixels of the image, in some shape after the batch."""
    size = int(np.prod(shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "end", "axis"], ["cut"]),
        helper.make_node("Reshape", ["cut", "shape"], [name]),
    ]
    constants = {"start": [0], "end": [size], "axis": [1], "shape": [-1, *shape]}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("pixels", kind, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, kind, [batch, *shape])],
        [numpy_helper.from_array(np.array(value, np.int64), key) for key, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def load(path: Path, checkpoint: Checkpoint = IMAGENET) -> encoder.Encoder:
    return models_load.load(lookup.resolve(f"onnx:{path}", checkpoint), Placement("cpu"))


@pytest.mark.parametrize(("shape", "output"), [((12,), "vector"), ((6, 12), "cls"), ((12, 1, 1), "vector")])
def test_vectors_tokens_and_pooled_maps(
    tmp_path: Path, pictures: list[Image.Image], shape: tuple[int, ...], output: str
) -> None:
    loaded = load(export(tmp_path / "m.onnx", shape))
    assert loaded.dims == {output: 12}
    assert loaded.preprocess["size"] == (SIDE, SIDE)  # the export is fixed to it
    prepared = [loaded.prepare(picture) for picture in pictures]
    expected = np.stack([picture.reshape(-1)[:12] for picture in prepared])  # of tokens the first
    assert np.allclose(loaded.embed(prepared)[output], expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_filled_up(tmp_path: Path, pictures: list[Image.Image], batch: int) -> None:
    loaded = load(export(tmp_path / "m.onnx", (8,), batch=batch))
    prepared = [loaded.prepare(picture) for picture in pictures]
    assert len(prepared) == 5
    assert np.allclose(loaded.embed(prepared)["vector"], np.stack([p.reshape(-1)[:8] for p in prepared]))


def test_half_precision(tmp_path: Path, pictures: list[Image.Image]) -> None:
    loaded = load(export(tmp_path / "m.onnx", (8,), kind=TensorProto.FLOAT16))
    assert loaded.dtype == "fp16"
    vectors = loaded.embed([loaded.prepare(picture) for picture in pictures])["vector"]
    assert vectors.dtype == np.float32
    assert np.isfinite(unit(vectors)).all()


@pytest.mark.parametrize(
    ("shape", "name", "told"),
    [
        ((1000,), "logits", "this is a classifier"),
        ((12,), "logits", "this is a classifier"),
        ((1000,), "output", "this is a classifier"),
        ((16, 12), "output", "16 patch tokens and no class token"),
        ((4, 4, 12), "output", "no vector"),
    ],
)
def test_what_is_no_embedder_is_refused(tmp_path: Path, shape: tuple[int, ...], name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told) as raised:
        load(export(tmp_path / "m.onnx", shape, name))
    assert raised.value.hint


def test_preprocessing_is_read_or_asked_for(tmp_path: Path) -> None:
    path = export(tmp_path / "onnx" / "model.onnx", (8,))
    with pytest.raises(ModelError, match="nothing says how images are prepared") as raised:
        load(path, Checkpoint())
    assert "--preprocess imagenet" in str(raised.value.hint)
    processor = checkpoints.processor_of(lookup.resolve("siglip-b-16-224"))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load(path, Checkpoint())
    assert (loaded.preprocess["resize"], loaded.preprocess["mean"]) == ("squash", (0.5, 0.5, 0.5))
    by_folder = models_load.load(lookup.resolve(f"onnx:{tmp_path}"), Placement("cpu"))  # in the layout of the hub
    assert by_folder.fingerprint("vector") == loaded.fingerprint("vector")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read"):
        load(path, Checkpoint())


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = export(tmp_path / "m.onnx", (8,))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ModelError, match=r"cannot load|is no ONNX model"):
        load(path)
    with pytest.raises(ModelError, match="2 ONNX files"):
        export(tmp_path / "two" / "a.onnx", (8,))
        export(tmp_path / "two" / "b.onnx", (8,))
        models_load.load(lookup.resolve(f"onnx:{tmp_path / 'two'}", IMAGENET), Placement("cpu"))


def test_the_catalogs_export_is_loaded_by_its_class_token(tmp_path: Path, pictures: list[Image.Image]) -> None:
    """A DINOv2 network, exported as such files are, against the same network in torch."""
    import torch
    import transformers as hf

    config = hf.Dinov2Config(hidden_size=384, num_hidden_layers=1, num_attention_heads=6, image_size=518, patch_size=14)
    network = hf.Dinov2Model(config).eval()

    class Tokens(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return network(pixel_values=pixels).last_hidden_state

    example = torch.zeros(2, 3, 224, 224)
    torch.onnx.export(Tokens().eval(), (example,), str(tmp_path / "m.onnx"), dynamo=True, verbose=False, output_names=["output"],
                      input_names=["input"], dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))  # fmt: skip
    spec = lookup.resolve("dinov2-vits14-onnx", Checkpoint(str(tmp_path / "m.onnx")))
    loaded = models_load.load(spec, Placement("cpu"))
    prepared = [loaded.prepare(picture) for picture in pictures]
    with torch.inference_mode():
        expected = network(pixel_values=torch.from_numpy(np.stack(prepared))).pooler_output.numpy()
    assert (unit(loaded.embed(prepared)["cls"]) * unit(expected)).sum(1).min() >= 0.99999
