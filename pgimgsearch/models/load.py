"""Load an encoder: on torch or ONNX Runtime, on the device and in the precision that are wanted."""

import importlib.util
from dataclasses import replace

from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.models.backends import backend_module, backends
from pgimgsearch.models.encoder import Encoder, Placement, check_outputs
from pgimgsearch.models.runtime.torch_thread import in_network_thread
from pgimgsearch.models.spec import ModelSpec


@in_network_thread
def load(spec: ModelSpec, placement: Placement | None = None) -> Encoder:
    """Load a model. Raises ModelError when a package, the weights or the network is missing."""
    placement, record = placement or Placement(), backends()[spec.backend]
    require(spec)
    if placement.dtype == "int8" and placement.runtime != "onnx" and record.on_torch:
        raise UsageError("int8 runs on ONNX Runtime only", hint="add --runtime onnx")
    exported = placement.runtime == "onnx" and record.on_torch
    settled = replace(placement, dtype="fp32", device="cpu") if exported else placement
    backend = backend_module(spec.backend)
    encoder: Encoder
    if record.on_torch:
        from pgimgsearch.models.runtime.multi_gpu import on_gpus

        encoder = on_gpus(lambda device: backend.load(spec, replace(settled, device=device)), settled.device)
    else:
        encoder = backend.load(spec, settled)
    check_outputs(spec, encoder)
    if not exported:
        return encoder
    from pgimgsearch.models.runtime.onnx_export import on_onnx_runtime

    return on_onnx_runtime(encoder, placement)  # type: ignore[arg-type]


def require(spec: ModelSpec) -> None:
    """Raise ModelError with the command that installs what a model's backend needs."""
    package = backends()[spec.backend].package
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"model {spec.name} needs the package {package}, which is not installed",
            hint="run: pip install 'pgimgsearch[torch]'",
        )
