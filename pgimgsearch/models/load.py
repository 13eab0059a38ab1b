"""Load an encoder: on torch or ONNX Runtime, on the device and in the precision that are wanted."""

import importlib.util
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.models.backends import backend_module, backends
from pgimgsearch.models.encoder import Encoder, Placement, check_outputs
from pgimgsearch.models.runtime.torch_thread import in_network_thread
from pgimgsearch.models.spec import ModelSpec

ONNX_ON_CPUS = True  # which tests of other things turn off: an export takes seconds
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))  # of NVIDIA, AMD, and Windows' Linux
Say = Callable[[str], None]
Made = Callable[[str], bool]


@in_network_thread
def load(
    spec: ModelSpec, placement: Placement | None = None, made: Made | None = None, say: Say = lambda _: None
) -> Encoder:
    """Load a model; ``say`` is told the runtime that was chosen, and why.

    ``made`` tells by a fingerprint whether a network made the vectors that are stored: an export in the cache that did
    is loaded without the network it came from. Raises ModelError when a package, the weights or the network is missing.
    """
    placement = placement or Placement()
    if not backends()[spec.backend].on_torch:
        require(spec)
        encoder: Encoder = backend_module(spec.backend).load(spec, placement)
        check_outputs(spec, encoder)
        return encoder
    if placement.dtype == "int8" and placement.runtime == "torch":
        raise UsageError("int8 runs on ONNX Runtime only", hint="leave --runtime torch out")
    if not _wants_onnx(placement):
        return _on_torch(spec, placement)
    return _on_onnx_runtime(spec, placement, made, say)


def require(spec: ModelSpec) -> None:
    """Raise ModelError with the command that installs what a model's backend needs."""
    package = backends()[spec.backend].package
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"model {spec.name} needs the package {package}, which is not installed",
            hint="run: pip install 'pgimgsearch[torch]'",
        )


def _wants_onnx(placement: Placement) -> bool:
    """Whether ONNX Runtime is asked for, or is the choice: in fp32 and int8 on a CPU."""
    if placement.runtime != "auto":
        return placement.runtime == "onnx"
    if placement.dtype == "int8":
        return True
    on_cpu = placement.device == "cpu" or (placement.device == "auto" and not _may_have_gpu())
    return ONNX_ON_CPUS and on_cpu and placement.dtype in {"auto", "fp32"}


def _may_have_gpu() -> bool:
    """Whether torch should be asked for a GPU; without torch, or a driver, there is none to use."""
    if importlib.util.find_spec("torch") is None:
        return False
    return platform.system() == "Darwin" or any(driver.exists() for driver in GPU_DRIVERS)


def _on_torch(spec: ModelSpec, placement: Placement) -> Encoder:
    require(spec)
    from pgimgsearch.models.runtime.multi_gpu import on_gpus

    backend = backend_module(spec.backend)
    encoder: Encoder = on_gpus(lambda device: backend.load(spec, replace(placement, device=device)), placement.device)
    check_outputs(spec, encoder)
    return encoder


def _on_onnx_runtime(spec: ModelSpec, placement: Placement, made: Made | None, say: Say) -> Encoder:
    from pgimgsearch.models.runtime.export_cache import find_export, read_export
    from pgimgsearch.models.runtime.exported_encoder import ExportedEncoder
    from pgimgsearch.models.runtime.quantize import quantized

    if placement.dtype not in {"auto", "fp32", "int8"}:
        raise ModelError(f"--runtime onnx has no {placement.dtype}", hint="use --dtype fp32 or --dtype int8")
    folder = None if made is None else find_export(made)
    if folder is None:
        original = _on_torch(spec, replace(placement, dtype="fp32", device="cpu"))
        from pgimgsearch.models.runtime.onnx_export import export

        say(f"{spec.name}: looking for its ONNX export, which is made once")
        try:
            folder = export(original)  # type: ignore[arg-type]
        except ModelError as error:
            if placement.runtime == "onnx" or placement.dtype == "int8":
                raise
            say(f"{spec.name} runs on torch: {error}")
            return original
        spec = original.spec
    if placement.dtype != "int8":
        say(f"{spec.name} runs on ONNX Runtime, the faster one on CPUs; its export agrees with torch")
        return ExportedEncoder(spec, folder, read_export(folder), placement)
    return ExportedEncoder(spec, folder, read_export(folder), placement, quantized(folder))
