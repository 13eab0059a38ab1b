"""What every torch backend shares: the device, the precision, batches, normalised text, and the hash of the weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import Placement, cannot_read, unit
from pgimgsearch.models.fingerprint import digest, fingerprint
from pgimgsearch.models.preprocess import to_array
from pgimgsearch.models.runtime import cpu_parallel as lanes
from pgimgsearch.models.runtime.cpu_features import faster_dtypes
from pgimgsearch.models.runtime.torch_thread import in_network_thread
from pgimgsearch.models.spec import ModelSpec, Preprocess

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TorchModel:
    """What a backend finds: a network, how it sees and reads, and how its images are prepared.

    ``image`` takes (n, 3, height, width) and gives output -> (n, dim), not normalised, all of one forward pass.
    ``tokenize`` makes of strings what ``text`` takes, which gives (n, dim) in the space of the first output. It cuts
    them to ``text_context`` tokens; ``count_tokens`` counts all of a text.
    ``portable_tokenizer`` gives the same as a ``tokenizers.Tokenizer``, and the name of what cleans texts before it
    (``text_tokens.CLEANERS``); None where it has no such form.
    """

    network: torch.nn.Module
    image: Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
    preprocess: Preprocess
    tokenize: Callable[[list[str]], Mapping[str, torch.Tensor]] | None = None
    text: Callable[..., torch.Tensor] | None = None
    portable_tokenizer: Callable[[], tuple[Any, str] | None] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    revision: str | None = None
    count_tokens: Callable[[str], int] = len
    text_context: int = 0


class TorchEncoder:
    """An Encoder around two towers."""

    runtime = "torch"

    def __init__(self, spec: ModelSpec, towers: TorchModel, placement: Placement) -> None:
        self.device = choose_device(placement.device)
        self.dtype = choose_dtype(placement.dtype, self.device)
        self.towers = towers
        self.logit_scale, self.logit_bias = towers.logit_scale, towers.logit_bias
        self.reads_text, self.text_context = towers.text is not None, towers.text_context
        self.faster_dtypes: Sequence[str] = (
            ()
            if self.device != "cpu" or self.dtype != "fp32"
            else faster_dtypes(
                matrix_products=any(isinstance(module, torch.nn.Linear) for module in towers.network.modules())
            )
        )
        self._how = towers.preprocess
        self.preprocess = self._how.as_dict()
        network = towers.network.eval()
        for parameter in network.parameters():  # TorchScript has no method for all of them
            parameter.requires_grad_(False)
        self._digest = digest(_weights(network.state_dict()))
        _narrow(network, DTYPES[self.dtype])
        _channels_last(network)
        network.to(self.device)
        height, width = towers.preprocess.size
        with _watched(network) as layers:
            outputs = self.embed([np.zeros((3, height, width), dtype=np.float32)])
        self._layer_bytes = max(layers, default=lanes.usual_layer_bytes(height, width))
        self.dims: Mapping[str, int] = {name: vectors.shape[1] for name, vectors in outputs.items()}
        output = next(iter(outputs)) if spec.output == "auto" else spec.output
        self.spec = replace(
            spec, output=output, dim=self.dims.get(output, 0), revision=towers.revision or spec.revision
        )

    def fingerprint(self, output: str) -> str:
        """Of the weights as they were loaded, preprocessing and output."""
        return fingerprint(self._digest, self.preprocess, output)

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """(3, height, width) float32."""
        return to_array(image, self._how)

    def embed(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Output -> (n, dim) float32. On CUDA several threads may call it at once (see ``lanes.passes``)."""
        return self.forward(prepared) if self.device.startswith("cuda") else self._embed(prepared)

    @in_network_thread
    def _embed(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        if self.device == "cpu" and lanes.worthwhile(prepared):
            return lanes.embed(self._forward_on_one_core, prepared, self._layer_bytes)
        return self.forward(prepared)

    def _forward_on_one_core(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        torch.set_num_threads(1)  # of the thread that says so
        return self.forward(prepared)

    @torch.inference_mode()
    def forward(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """As ``embed``, in the thread that calls."""
        with self._precision():
            outputs = self.towers.image(self._gathered(prepared))
        return {name: np.asarray(vectors.float().cpu().numpy()) for name, vectors in outputs.items()}

    def _gathered(self, prepared: Sequence[NDArray[Any]]) -> torch.Tensor:
        """(n, 3, height, width) on the device, laid out for CUDA in memory that it can read by itself."""
        cuda = self.device.startswith("cuda")
        batch = torch.empty((len(prepared), *prepared[0].shape), pin_memory=cuda)
        np.stack(prepared, out=batch.numpy())
        return batch.to(self.device, non_blocking=cuda)

    @in_network_thread
    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, normalised."""
        if self.towers.text is None or self.towers.tokenize is None:
            raise cannot_read(self.spec.name)
        tokens = {name: tensor.to(self.device) for name, tensor in self.towers.tokenize(list(texts)).items()}
        with self._precision():
            vectors = self.towers.text(**tokens)
        return unit(vectors.float().cpu().numpy())

    @in_network_thread  # tokenizers of transformers are of one thread
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, those beyond ``text_context`` too."""
        return [self.towers.count_tokens(text) for text in texts]

    def _precision(self) -> AbstractContextManager[Any]:
        """Autocast keeps norms, softmax and rotary embeddings in fp32, which a plain cast of the network would not."""
        if self.dtype == "fp32":
            return nullcontext()
        return torch.autocast(self.device.partition(":")[0], DTYPES[self.dtype])


def choose_device(device: str) -> str:
    """``auto`` is the first of cuda, mps and cpu that is there; a device that is not there is an error."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"there is no device {device} here: {str(error).splitlines()[0]}",
            hint="use --device auto or --device cpu",
        ) from error
    return device


def choose_dtype(dtype: str, device: str) -> str:
    """``auto`` is fp32 on a CPU, on a GPU bf16 where it has that, else fp16."""
    if dtype != "auto":
        return dtype
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "fp16" if device == "mps" else "fp32"


def _narrow(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Hold the large weights in half precision: those of linear layers and convolutions, which autocast casts."""
    if dtype == torch.float32:
        return
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(dtype)


def _channels_last(network: torch.nn.Module) -> None:
    """Lay convolutions out as their fastest kernels want them; images follow by themselves."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)


@contextmanager
def _watched(network: torch.nn.Module) -> Iterator[list[int]]:
    """The bytes that each layer gives while the block runs; of TorchScript, which does not tell, none."""
    seen: list[int] = []

    def note(_module: torch.nn.Module, _given: Any, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            seen.append(result.nbytes)

    layers = list(network.modules())
    told = not any(isinstance(layer, torch.jit.ScriptModule) for layer in layers)
    handles = [layer.register_forward_hook(note) for layer in layers if told]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _weights(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, memoryview]]:
    """What a checkpoint holds; buffers that are computed are for the canary to judge."""
    for name, tensor in state.items():
        flat = tensor.detach().cpu().contiguous().flatten()
        yield (f"{name} {tuple(tensor.shape)} {tensor.dtype}", flat.view(torch.uint8).numpy().data)
