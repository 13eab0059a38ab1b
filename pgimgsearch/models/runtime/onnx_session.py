"""ONNX Runtime: a model on a device, with its threads set."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pgimgsearch.errors import ModelError
from pgimgsearch.models.runtime import cpu_parallel as lanes

CUDA = "CUDAExecutionProvider"


class Session:
    """A model, loaded; on a CPU once more, for single threads, as soon as a batch has a piece for every core.

    ``device`` is where it runs, ``fixed_batch`` the only number of images it takes, where it was exported for one.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._path = path
        self._session, self.device = _open(path, device, lanes.lanes())
        self.inputs: list[Any] = self._session.get_inputs()
        self.outputs: list[str] = [output.name for output in self._session.get_outputs()]
        batch = self.inputs[0].shape[0] if self.inputs[0].shape else None
        self.fixed_batch: int | None = batch if isinstance(batch, int) else None

    def run(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Output -> what it gives for (3, height, width) arrays, in the order of the model's outputs."""
        if self.device == "cpu" and self.fixed_batch is None and lanes.worthwhile(prepared):
            layer_bytes = lanes.usual_layer_bytes(*prepared[0].shape[1:])
            return lanes.embed(partial(self._run, self._for_one_core), prepared, layer_bytes)
        return self._run(self._session, prepared)

    def run_feeds(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Output -> what it gives for named inputs."""
        outputs = self._session.run(None, dict(feeds))
        return dict(zip(self.outputs, outputs, strict=True))

    @cached_property
    def _for_one_core(self) -> Any:
        return _open(self._path, "cpu", 1)[0]

    def _run(self, session: Any, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        kind = np.float16 if self.inputs[0].type == "tensor(float16)" else np.float32
        outputs = session.run(None, {self.inputs[0].name: np.stack(prepared).astype(kind, copy=False)})
        return {name: np.asarray(output, dtype=np.float32) for name, output in zip(self.outputs, outputs, strict=True)}


def _open(path: Path, device: str, threads: int) -> tuple[Any, str]:
    """A session, and the device it runs on: ``auto`` is CUDA where this build of ONNX Runtime has it."""
    available = onnxruntime.get_available_providers()
    if device.startswith("cuda") and CUDA not in available:
        raise ModelError(
            "this build of ONNX Runtime has no CUDA", hint="pip install onnxruntime-gpu, or use --device cpu"
        )
    if device not in {"auto", "cpu"} and not device.startswith("cuda"):
        raise ModelError(f"ONNX Runtime does not run on {device}", hint="use --device cpu or cuda")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu" and CUDA in available:
        providers.insert(0, (CUDA, {"device_id": int(device.partition(":")[2] or 0)}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the library raises many kinds
        raise ModelError(
            f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0][:300]}",
            hint="it is truncated, no ONNX model, or its .onnx_data file is not in the same folder",
        ) from error
    if device.startswith("cuda") and session.get_providers()[0] != CUDA:
        raise ModelError("ONNX Runtime could not start CUDA", hint="install its CUDA libraries, or use --device cpu")
    return session, "cuda" if session.get_providers()[0] == CUDA else "cpu"
