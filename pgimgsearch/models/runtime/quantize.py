"""The image tower of an export in eight bits."""

from pathlib import Path
from typing import Any

from pgimgsearch.errors import ModelError
from pgimgsearch.models.runtime.export_cache import kept

QUANTISED = ["MatMul", "Gemm"]


def quantized(folder: Path) -> Path:
    """The file of an export's image tower in eight bits, made unless the cache has it."""
    return kept(folder / "int8", lambda made: _quantize(folder / "image" / "model.onnx", made)) / "model.onnx"


def _quantize(source: Path, folder: Path) -> None:
    """Eight bits for the weights of matrix products, with scales found at run time."""
    try:
        import onnx
    except ImportError as error:
        raise ModelError(
            "int8 is made by the package onnx, which is not installed", hint="run: pip install 'pgimgsearch[torch]'"
        ) from error
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model: Any = onnx.load(source)
    del model.graph.value_info[:]  # it is inferred anew, and what the exporter noted may contradict that
    if not any(node.op_type in QUANTISED for node in model.graph.node):
        raise ModelError(
            "int8 is for matrix products, and this network is made of convolutions alone",
            hint="leave --dtype int8 out: ONNX Runtime by itself makes such networks faster",
        )
    quantize_dynamic(model, str(folder / "model.onnx"), op_types_to_quantize=QUANTISED, weight_type=QuantType.QInt8)
