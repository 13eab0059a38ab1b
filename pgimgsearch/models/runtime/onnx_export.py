"""Export a torch network to ONNX, image and text tower: once, into the cache, if the export agrees with the network."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch

from pgimgsearch.errors import ModelError
from pgimgsearch.models import canary
from pgimgsearch.models.encoder import Placement, unit
from pgimgsearch.models.runtime.exported_encoder import FORMAT, Export, ExportedEncoder, exports_folder, read_export
from pgimgsearch.models.runtime.text_tokens import TextTokenizer
from pgimgsearch.models.runtime.torch_encoder import TorchEncoder

LEAST_COSINE = 0.99999
QUANTISED = ["MatMul", "Gemm"]
BATCH = torch.export.Dim("batch", min=1, max=1 << 16)
CPU = Placement("cpu", "fp32", "onnx")
# What tokenizers differ in: entities, mojibake, emoji, scripts, case, spaces, punctuation, length.
TEXTS = (
    "a photo of a dog", "Red DRESS, size 42; it's new!", "caf&eacute; &amp;amp; bar", "schÃ¶n und grÃ¼n",
    "👍🏽 rocket 🚀✨", "красное платье", "赤いドレスと靴", "빨간 드레스", "فستان أحمر", "लाल पोशाक",
    "  two\t\tspaces\n", "under_score's 3.14%", "x " * 100,
)  # fmt: skip


def export(original: TorchEncoder) -> Path:
    """The folder of a network's export, made unless the cache has it.

    Raises ModelError where it cannot be used, which is remembered for these versions of the libraries.
    """
    folder = exports_folder() / original.fingerprint("all")[:32]
    found = read_export(folder)
    if found is not None and found.format == FORMAT:
        return folder
    refusal = folder / f"refused-torch{torch.__version__}-onnxruntime{onnxruntime.__version__}.txt"
    if refusal.exists():
        raise ModelError(refusal.read_text(), hint="use --runtime torch")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return _kept(folder, lambda made: _export(original, made))
    except ModelError as error:
        folder.mkdir(parents=True)
        refusal.write_text(str(error))
        raise


def quantized(folder: Path) -> Path:
    """The image tower of an export in eight bits, made unless the cache has it."""
    return _kept(folder / "int8", lambda made: _quantize(folder / "image" / "model.onnx", made)) / "model.onnx"


def _kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made under another name and renamed: a torn one is never taken for whole."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as made:
            make(Path(made))
            try:
                Path(made).rename(folder)
            except OSError:
                if not folder.exists():  # else another process was first
                    raise
    return folder


def _export(original: TorchEncoder, folder: Path) -> None:
    """Export, describe and check."""
    towers, name = original.towers, original.spec.name
    try:
        height, width = towers.preprocess.size
        products = _save(
            _ImageTower(original), (torch.zeros(2, 3, height, width),), ({0: BATCH},), ["pixels"], [*original.dims],
            folder / "image",
        )  # fmt: skip
        cleaner = _export_text(original, folder) if towers.text is not None else None
    except ModelError:
        raise
    except Exception as error:  # the exporter raises anything
        raise ModelError(
            f"{name} cannot be exported to ONNX: {str(error).strip().splitlines()[0][:200]}", hint="use --runtime torch"
        ) from error
    described = Export(
        {output: original.fingerprint(output) for output in original.dims}, dict(original.dims), original.preprocess,
        original.spec.revision, original.logit_scale, original.logit_bias, cleaner, products, 1.0,
    )  # fmt: skip
    _describe(folder, described)
    lowest = _lowest_cosine(original, ExportedEncoder(original.spec, folder, CPU))
    if not lowest >= LEAST_COSINE:
        raise ModelError(
            f"the ONNX export of {name} differs: cosine {lowest:.6f} with torch, at least {LEAST_COSINE} is needed",
            hint="use --runtime torch",
        )
    _describe(folder, replace(described, cosine=lowest))


def _describe(folder: Path, export: Export) -> None:
    (folder / "export.json").write_text(json.dumps(asdict(export), indent=1))


def _export_text(original: TorchEncoder, folder: Path) -> str:
    """Export the text tower with its tokenizer; the name of what cleans texts."""
    towers = original.towers
    assert towers.tokenize is not None
    portable = None if towers.portable_tokenizer is None else towers.portable_tokenizer()
    if portable is None:
        raise ModelError(f"the tokenizer of {original.spec.name} cannot be exported", hint="use --runtime torch")
    tokenizer, cleaner = portable
    tokenizer.save(str(folder / "tokenizer.json"))
    theirs = {key: ids.numpy() for key, ids in towers.tokenize(list(TEXTS)).items()}
    ids, mask = TextTokenizer(folder / "tokenizer.json", cleaner)(TEXTS)
    if not all(np.array_equal(mask if "mask" in key else ids, expected) for key, expected in theirs.items()):
        raise ModelError(
            f"the exported tokenizer of {original.spec.name} gives other tokens", hint="use --runtime torch"
        )
    inputs = towers.tokenize(list(TEXTS[:2]))
    shortest, longest = (next(iter(towers.tokenize([text]).values())).shape[1] for text in (TEXTS[0], TEXTS[-1]))
    sizes = {0: BATCH} | ({} if shortest == longest else {1: torch.export.Dim("length", min=2, max=longest)})
    tower, shapes = _TextTower(original, [*inputs]), (tuple(sizes for _ in inputs),)
    _save(tower, tuple(inputs.values()), shapes, [*inputs], ["text_vector"], folder / "text")
    return cleaner


class _ImageTower(torch.nn.Module):
    """All outputs of a forward pass, as a tuple."""

    def __init__(self, original: TorchEncoder) -> None:
        super().__init__()
        self.network, self.image = original.towers.network, original.towers.image

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the network."""
        return tuple(self.image(pixels).values())


class _TextTower(torch.nn.Module):
    """The vector of token ids, with a mask where the network takes one."""

    def __init__(self, original: TorchEncoder, names: list[str]) -> None:
        super().__init__()
        self.network, self.text, self.names = original.towers.network, original.towers.text, names

    def forward(self, *tokens: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        assert self.text is not None
        return self.text(**dict(zip(self.names, tokens, strict=True)))


def _save(
    tower: torch.nn.Module, inputs: tuple[torch.Tensor, ...], sizes: tuple[Any, ...], names: list[str],
    outputs: list[str], folder: Path,
) -> bool:  # fmt: skip
    """Export with ``sizes`` that vary, by input and dimension; whether the tower has products of matrices."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            tower.eval(), inputs, dynamo=True, verbose=False, input_names=names, output_names=outputs,
            dynamic_shapes=sizes,
        )  # fmt: skip
    assert program is not None
    program.save(str(folder / "model.onnx"), external_data=True)  # a protobuf ends at 2 GB
    return any(node.op_type in QUANTISED for node in program.model.graph)


def _lowest_cosine(original: TorchEncoder, exported: ExportedEncoder) -> float:
    """Between both runtimes, over drawn images, noise and texts."""
    noise = np.random.default_rng(0).standard_normal((4, 3, *original.towers.preprocess.size), dtype=np.float32)
    prepared = [original.prepare(image) for image in canary.images()] + list(noise)
    ours, theirs = exported.embed(prepared), original.embed(prepared)
    pairs = [(ours[name], theirs[name]) for name in original.dims]
    if original.reads_text:
        pairs.append((exported.embed_text(TEXTS), original.embed_text(TEXTS)))
    return min(float((unit(one) * unit(other)).sum(1).min()) for one, other in pairs)


def _quantize(source: Path, folder: Path) -> None:
    """Eight bits for the weights of matrix products, with scales found at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model: Any = onnx.load(source)
    del model.graph.value_info[:]  # it is inferred anew, and what the exporter noted may contradict that
    if not any(node.op_type in QUANTISED for node in model.graph.node):
        raise ModelError(
            "int8 is for matrix products, and this network is made of convolutions alone",
            hint="leave --dtype int8 out: ONNX Runtime by itself makes such networks faster",
        )
    quantize_dynamic(model, str(folder / "model.onnx"), op_types_to_quantize=QUANTISED, weight_type=QuantType.QInt8)
