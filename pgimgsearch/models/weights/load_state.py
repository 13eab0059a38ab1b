"""Weights: read safely, loaded strictly, and downloads that fail in words a user can act on."""

import logging
import os
import re
import socket
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pgimgsearch.errors import ModelError, PgImgSearchError
from pgimgsearch.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

LIBRARIES = ("timm", "open_clip", "transformers", "huggingface_hub")
SERIOUS = re.compile(r"QuickGELU mismatch|initialized partially|Multiple checkpoints", re.IGNORECASE)


def read_state_dict(path: Path) -> dict[str, "torch.Tensor"]:
    """Read a checkpoint file by safetensors, or by torch with ``weights_only``: no code of the file ever runs."""
    if path.suffix == ".onnx":
        raise ModelError(f"{path} is an ONNX model", hint=f"name it so: --model onnx:{path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise whatever the bytes lead them to
        raise ModelError(
            f"cannot read the checkpoint {path}: {_first_line(error).partition('. ')[0]}",
            hint="it is truncated, no checkpoint, or needs code to load; a .safetensors file is the safest form",
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def load_strictly(
    network: "torch.nn.Module", state: Mapping[str, "torch.Tensor"], what: str, drop: Collection[str] = ()
) -> None:
    """Load all of a state dict into a network; ``drop`` names heads (prefixes) that are not wanted.

    A missing, unexpected or misshapen weight is an error: the vectors would be noise.
    """
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(drop) or ("\0",))}
    own = network.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - kept.keys() if not name.endswith("num_batches_tracked")]
    problems += [f"{name} is not expected" for name in kept.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(kept[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & kept.keys()
        if own[name].shape != kept[name].shape
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ModelError(
            f"the weights do not fit {what}: {listed}", hint="check that checkpoint and model belong together"
        )
    network.load_state_dict(kept, strict=False)  # all that may still differ is num_batches_tracked


def settle_hub_access() -> None:
    """Quieten the hub's client, and where its host cannot be found use only what is cached: it would retry a minute.

    To be called before the client is imported, which is when it reads its environment.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if "HF_HUB_OFFLINE" in os.environ or getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


@contextmanager
def loading(spec: ModelSpec) -> Iterator[None]:
    """Turn what the libraries raise while they fetch and load into a ModelError with the way out.

    What they only warn of, though the vectors would be wrong, is an error too.
    """
    try:
        with _listening() as heard:
            yield
    except PgImgSearchError:
        raise
    except Exception as error:  # each library has errors of its own, and chains those of the hub
        raise _explain(spec, error) from error
    serious = [message for message in heard if SERIOUS.search(message)]
    if serious:
        raise ModelError(
            f"loading {spec.name} gave a warning: {serious[0].splitlines()[0]}",
            hint="its vectors would be wrong: check that checkpoint and model belong together",
        )


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect, instead of showing, the warnings of the libraries and what they log."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in (None, *LIBRARIES)]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for logger in loggers:
                logger.handlers, logger.level, logger.propagate = [handler], logging.WARNING, False
            yield heard
        finally:
            for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
                logger.handlers, logger.level, logger.propagate = handlers, level, propagate
            heard += [str(warning.message) for warning in caught]


def _explain(spec: ModelSpec, error: BaseException) -> ModelError:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {type(link).__name__ for link in chain}
    alternative = f'; the open alternative is "{spec.alternative}"' if spec.alternative else ""
    if "GatedRepoError" in kinds:
        return ModelError(
            f"{spec.checkpoint} is gated: its owner has to grant you access",
            hint=f"ask for access on its page and run: hf auth login{alternative}",
        )
    if kinds & {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"}:
        return ModelError(
            f"there is no model {spec.checkpoint} on the hub, or it is private",
            hint=f"check the name; for a private one run: hf auth login{alternative}",
        )
    if spec.weights is None and kinds & {
        "LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError", "ConnectTimeout",
        "ReadTimeout", "URLError", "gaierror", "ProxyError", "HfHubHTTPError", "MaxRetryError", "OSError",
    }:  # fmt: skip
        gated = " (it is gated as well)" if spec.gated else ""
        return ModelError(
            f"the weights of {spec.name} could not be downloaded{gated}: {_first_line(error)}",
            hint=f"check the network, load a local copy: pgimgsearch ingest DIR --model {spec.name} --weights PATH; "
            f"or bring a bundle: pgimgsearch models fetch {spec.name} --from DIR{alternative}",
        )
    return ModelError(
        f"cannot load {spec.name}: {_first_line(error)}",
        hint="check the checkpoint; --debug shows the whole story",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
