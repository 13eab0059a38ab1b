"""ONNX Runtime: a session on a device with its threads set."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pgimgsearch.errors import ModelError


def open_session(path: Path, device: str) -> tuple[Any, str]:
    """A session, and the device it runs on: ``auto`` is CUDA where this build of ONNX Runtime has it."""
    available = onnxruntime.get_available_providers()
    cuda = "CUDAExecutionProvider"
    if device.startswith("cuda") and cuda not in available:
        raise ModelError(
            "this build of ONNX Runtime has no CUDA", hint="pip install onnxruntime-gpu, or use --device cpu"
        )
    if device not in {"auto", "cpu"} and not device.startswith("cuda"):
        raise ModelError(f"ONNX Runtime does not run on {device}", hint="use --device cpu or cuda")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu" and cuda in available:
        providers.insert(0, (cuda, {"device_id": int(device.partition(":")[2] or 0)}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the library raises many kinds
        raise ModelError(
            f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0][:300]}",
            hint="it is truncated, no ONNX model, or its .onnx_data file is not beside it",
        ) from error
    if device.startswith("cuda") and session.get_providers()[0] != cuda:
        raise ModelError("ONNX Runtime could not start CUDA", hint="install its CUDA libraries, or use --device cpu")
    return session, "cuda" if session.get_providers()[0] == cuda else "cpu"


def run(session: Any, prepared: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
    """All outputs for prepared pictures, in the order of the session's outputs."""
    wanted = session.get_inputs()[0]
    kind = np.float16 if wanted.type == "tensor(float16)" else np.float32
    outputs = session.run(None, {wanted.name: np.stack(prepared).astype(kind)})
    return [np.asarray(output, dtype=np.float32) for output in outputs]
