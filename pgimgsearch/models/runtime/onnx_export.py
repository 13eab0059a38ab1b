"""A torch network on ONNX Runtime: exported once, kept in the cache, and compared with what it came from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import Placement, unit
from pgimgsearch.models.runtime.onnx_session import Session
from pgimgsearch.models.runtime.torch_encoder import TorchEncoder
from pgimgsearch.models.weights.load_state import loading
from pgimgsearch.settings import cache_folder

LEAST_COSINE = 0.99
QUANTISED = ["MatMul", "Gemm"]
DTYPES = {"auto": "fp32", "fp32": "fp32", "int8": "int8"}


class ExportedEncoder:
    """An Encoder whose image tower runs on ONNX Runtime; the rest is that of the network it came from."""

    runtime = "onnx"

    def __init__(self, original: TorchEncoder, path: Path, placement: Placement, dtype: str) -> None:
        self.original = original
        self.session = Session(path, placement.device)
        self.device, self.dtype = self.session.device, dtype
        self.spec, self.preprocess = original.spec, original.preprocess
        self.dims: Mapping[str, int] = original.dims
        self.reads_text = original.reads_text
        self.logit_scale, self.logit_bias = original.logit_scale, original.logit_bias

    def fingerprint(self, output: str) -> str:
        """Of the original: the runtime is no part of it."""
        return self.original.fingerprint(output)

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """(3, height, width) float32."""
        return self.original.prepare(image)

    def embed(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Output -> (n, dim) float32."""
        return self.session.run(prepared)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, normalised; by torch."""
        return self.original.embed_text(texts)

    def check(self, prepared: Sequence[NDArray[Any]]) -> float:
        """The lowest cosine between both runtimes over prepared images; raises ModelError below 0.99."""
        ours, theirs = self.embed(prepared), self.original.embed(prepared)
        lowest = min(float((unit(ours[name]) * unit(theirs[name])).sum(1).min()) for name in self.dims)
        if not lowest >= LEAST_COSINE:
            raise ModelError(
                f"{self.spec.name} in {self.dtype} on ONNX Runtime is not the same model: cosine {lowest:.4f} "
                f"with fp32 on one of {len(prepared)} of these images, at least {LEAST_COSINE} is needed",
                hint="run without --dtype int8, or without --runtime onnx",
            )
        return lowest


def on_onnx_runtime(original: TorchEncoder, placement: Placement) -> ExportedEncoder:
    """Export the image tower, unless the cache has it."""
    if placement.dtype not in DTYPES:
        raise ModelError(f"--runtime onnx has no {placement.dtype}", hint="use --dtype fp32 or --dtype int8")
    dtype = DTYPES[placement.dtype]
    folder = cache_folder() / "onnx" / f"{original.fingerprint('all')[:32]}-torch{torch.__version__}"
    with loading(original.spec):
        path = _kept(folder / "fp32", lambda made: _export(original, made))
        if dtype == "int8":
            full = path
            path = _kept(folder / "int8", lambda made: _quantize(full, made))
        return ExportedEncoder(original, path, placement, dtype)


def _kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """The model in a folder of the cache, made in another and renamed: a torn one is never taken for whole."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as made:
            make(Path(made) / "model.onnx")
            try:
                Path(made).rename(folder)
            except OSError:
                if not folder.exists():  # else another process was first
                    raise
    return folder / "model.onnx"


class _ImageTower(torch.nn.Module):
    """All outputs of a forward pass, as a tuple."""

    def __init__(self, original: TorchEncoder) -> None:
        super().__init__()
        self.network = original.towers.network
        self.image = original.towers.image

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the network."""
        return tuple(self.image(pixels).values())


def _export(original: TorchEncoder, path: Path) -> None:
    height, width = original.towers.preprocess.size
    pixels = torch.zeros(2, 3, height, width)
    program = torch.onnx.export(
        _ImageTower(original), (pixels,), dynamo=True, verbose=False, input_names=["pixels"],
        output_names=list(original.dims), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 16)},),
    )  # fmt: skip
    assert program is not None
    program.save(str(path), external_data=True)  # a protobuf ends at 2 GB


def _quantize(source: Path, path: Path) -> None:
    """Eight bits for the weights of matrix products, with scales found at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # it is inferred anew, and what the exporter noted may contradict that
    if not any(node.op_type in QUANTISED for node in model.graph.node):
        raise ModelError(
            "int8 is for matrix products, and this network is made of convolutions alone",
            hint="leave --dtype int8 out: --runtime onnx by itself is what makes such networks faster",
        )
    quantize_dynamic(model, str(path), op_types_to_quantize=QUANTISED, weight_type=QuantType.QInt8)
