"""Export a torch network to ONNX, image and text tower: once, into the cache, if the export agrees with the network."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from pgimgsearch.errors import ModelError
from pgimgsearch.models import canary
from pgimgsearch.models.encoder import Placement, unit
from pgimgsearch.models.runtime.export_cache import Export, exports_folder, kept
from pgimgsearch.models.runtime.exported_encoder import ExportedEncoder
from pgimgsearch.models.runtime.quantize import QUANTISED
from pgimgsearch.models.runtime.text_tokens import TextTokenizer
from pgimgsearch.models.runtime.torch_encoder import TorchEncoder

LEAST_COSINE = 0.99999
BATCH = torch.export.Dim("batch", min=1, max=1 << 16)
CPU = Placement("cpu", "fp32", "onnx")
# What tokenizers differ in: entities, mojibake, emoji, scripts, case, spaces, punctuation, length.
TEXTS = (
    "a photo of a dog", "Red DRESS, size 42; it's new!", "&eacute;t&eacute; &amp;amp; bar", "schÃ¶n und grÃ¼n",
    "👍🏽 rocket 🚀✨", "красное платье", "赤いドレスと靴", "빨간 드레스", "فستان أحمر", "लाल पोशाक",
    "  two\t\tspaces\n", "under_score's 3.14%", "x " * 100,
)  # fmt: skip


class RefusedExport(ModelError):  # noqa: N818
    """The export is not the same model, and never will be with these versions of the libraries."""


def export(original: TorchEncoder) -> Path:
    """The folder of a network's export, made unless the cache has it.

    Raises ModelError where it cannot be used. A refusal is remembered for these versions of the libraries.
    """
    folder = exports_folder() / original.fingerprint("all")[:32]
    versions = f"torch{torch.__version__}-onnxruntime{onnxruntime.__version__}"
    refusal = folder.with_name(f"{folder.name}-{versions}.refused")
    hint = f"use --runtime torch; or try again: rm {refusal}"
    if refusal.exists():
        raise RefusedExport(refusal.read_text(), hint=hint)
    try:
        return kept(folder, lambda made: _export(original, made))
    except RefusedExport as error:
        refusal.write_text(str(error))
        raise RefusedExport(str(error), hint=hint) from error


def _export(original: TorchEncoder, folder: Path) -> None:
    """Export, check and describe."""
    towers, name = original.towers, original.spec.name
    height, width = towers.preprocess.size
    try:
        products = _save(
            _ImageTower(original), (torch.zeros(2, 3, height, width),), ({0: BATCH},), ["pixels"], [*original.dims],
            folder / "image",
        )  # fmt: skip
        cleaner = _export_text(original, folder) if towers.text is not None else None
    except (ModelError, OSError, MemoryError, ImportError):  # of this machine at this moment
        raise
    except Exception as error:  # the exporter raises anything
        raise RefusedExport(
            f"{name} cannot be exported to ONNX: {(str(error).strip().splitlines() or [repr(error)])[0][:200]}"
        ) from error
    made = Export(
        {output: original.fingerprint(output) for output in original.dims}, dict(original.dims), original.preprocess,
        original.spec.revision, original.logit_scale, original.logit_bias, cleaner, products,
    )  # fmt: skip
    lowest = _lowest_cosine(original, ExportedEncoder(original.spec, folder, made, CPU))
    if not lowest >= LEAST_COSINE:
        raise RefusedExport(
            f"the ONNX export of {name} differs: cosine {lowest:.6f} with torch, at least {LEAST_COSINE} is needed"
        )
    made.write(folder)


def _export_text(original: TorchEncoder, folder: Path) -> str:
    """Export the text tower with its tokenizer; the name of what cleans texts."""
    towers = original.towers
    assert towers.tokenize is not None
    portable = None if towers.portable_tokenizer is None else towers.portable_tokenizer()
    if portable is None:
        raise RefusedExport(f"the tokenizer of {original.spec.name} cannot be exported")
    tokenizer, cleaner = portable
    tokenizer.save(str(folder / "tokenizer.json"))
    theirs = {key: ids.numpy() for key, ids in towers.tokenize(list(TEXTS)).items()}
    ids, mask = TextTokenizer(folder / "tokenizer.json", cleaner)(TEXTS)
    if not all(np.array_equal(mask if "mask" in key else ids, expected) for key, expected in theirs.items()):
        raise RefusedExport(f"the exported tokenizer of {original.spec.name} gives other tokens")
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
