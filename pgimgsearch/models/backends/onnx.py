"""ONNX exports: ``onnx:FILE``, ``onnx:FOLDER``, ``onnx:REPOSITORY``; a folder may hold a text tower too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.models.backends import Backend
from pgimgsearch.models.encoder import Placement, cannot_read
from pgimgsearch.models.fingerprint import fingerprint
from pgimgsearch.models.onnx_external_data import external_data
from pgimgsearch.models.onnx_folder import TOWERS, described_preprocessing, image_tower, text_tower
from pgimgsearch.models.preprocess import to_array
from pgimgsearch.models.spec import ModelSpec, Preprocess
from pgimgsearch.models.weights import download as files
from pgimgsearch.models.weights.load_state import loading

if TYPE_CHECKING:
    from pgimgsearch.models.runtime.onnx_text import TextTower
    from pgimgsearch.models.runtime.text_tokens import TextTokenizer

BACKEND = Backend(package="onnxruntime", prefix="onnx", file_suffix=".onnx", needs_preprocessing=True)

VECTORS = ("image_embeds", "pooler_output", "features", "embedding", "embeddings", "last_hidden_state", "output")
CLASSES = {"logits", "probabilities", "scores", "probs"}
IMAGENET_CLASSES = {1000, 21841, 21843}


class OnnxEncoder:
    """An Encoder around a session."""

    runtime = "onnx"
    faster_dtypes: Sequence[str] = ()
    logit_scale: float | None = None
    logit_bias: float | None = None

    def __init__(
        self, spec: ModelSpec, path: Path, how: Preprocess, placement: Placement,
        text: tuple[Path, TextTokenizer] | None = None,
    ) -> None:  # fmt: skip
        from pgimgsearch.models.runtime.onnx_session import Session

        towers = [path] if text is None else [path, text[0]]
        parts = [part for tower in towers for part in (tower, *external_data(tower))]  # checked before they are opened
        self.session = Session(path, placement.device)
        self.device, inputs = self.session.device, self.session.inputs
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise ModelError(f"{path} does not take images alone", hint="export the image tower by itself")
        sides = inputs[0].shape[2:]
        self.dtype = "fp16" if inputs[0].type == "tensor(float16)" else "fp32"
        if placement.dtype not in {"auto", self.dtype}:
            raise UsageError(
                f"{spec.name} was exported in {self.dtype}", hint="leave --dtype out, or take another export"
            )
        self._how = _at_size(how, sides, path)
        self.preprocess = self._how.as_dict()
        self._digest = "onnx " + " ".join(map(files.sha256_of, parts))
        probe = np.zeros((3, *self._how.size), dtype=np.float32)
        shapes = {name: out.shape for name, out in self.session.run([probe] * (self.session.fixed_batch or 1)).items()}
        self._chosen = choose_output(list(shapes), list(shapes.values()))
        self._tokens = len(shapes[self._chosen]) == 3
        self._output = "cls" if self._tokens or spec.output == "cls" else "vector"
        self.dims = {self._output: shapes[self._chosen][-1 if self._tokens else 1]}
        self._text = self._open_text(text, placement)
        self.reads_text = self._text is not None
        self.text_context = 0 if self._text is None else self._text.tokenizer.context
        self.spec = replace(spec, output=self._output, dim=self.dims[self._output],
                            revision=files.revision_of(path) or spec.revision)  # fmt: skip

    def fingerprint(self, output: str) -> str:
        """Of the file with its data, preprocessing and output."""
        return fingerprint(self._digest, self.preprocess, output)

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """(3, height, width) float32."""
        return to_array(image, self._how)

    def embed(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Output -> (n, dim) float32; an export with a fixed batch gets its batches filled up."""
        size = self.session.fixed_batch or len(prepared)
        parts = [list(prepared[start : start + size]) for start in range(0, len(prepared), size)]
        answers = [self.session.run(part + part[-1:] * (size - len(part)))[self._chosen] for part in parts]
        vectors = np.concatenate(answers)[: len(prepared)]
        return {self._output: vectors[:, 0] if self._tokens else vectors.reshape(len(vectors), -1)}

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, normalised."""
        if self._text is None:
            raise cannot_read(self.spec.name)
        return self._text.embed(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, those that are not read too."""
        return [] if self._text is None else self._text.tokenizer.count(texts)

    def _open_text(self, text: tuple[Path, TextTokenizer] | None, placement: Placement) -> TextTower | None:
        if text is None:
            return None
        from pgimgsearch.models.runtime.onnx_text import TextTower

        tower, dim = TextTower(*text, placement.device), self.dims[self._output]
        if tower.dim != dim:
            raise ModelError(
                f"the text tower {text[0]} gives vectors of dimension {tower.dim}, the image tower {dim}",
                hint="they belong to different models, or one was exported without its projection",
            )
        return tower


def origin(spec: ModelSpec) -> files.Origin:
    """A repository with exports: its towers in full precision, not every variant."""
    towers = [[name for name in pair if name is not None] for pair in TOWERS.items()]
    patterns = [tuple(file for name in pair for file in (name, f"{name}_data", f"{name}.data")) for pair in towers]
    return files.Origin(
        spec.checkpoint, (*patterns, ("*.onnx", "*.onnx_data")), describing=("*.json",), revision=spec.revision
    )  # fmt: skip


def load(spec: ModelSpec, placement: Placement) -> OnnxEncoder:
    """Load an export; its preprocessing is the catalog's, the user's, or what files near it say."""
    with loading(spec):
        path, text = files.local(spec) or files.download(origin(spec)), None
        if path.is_dir():
            folder, path = path, image_tower(path)
            text = text_tower(folder, path)
        return OnnxEncoder(spec, path, spec.preprocess or described_preprocessing(path), placement, text)


def choose_output(names: list[str], shapes: list[tuple[int, ...]]) -> str:
    """The output that is an embedding; classes and bare patch tokens are refused."""
    known = dict(zip(names, shapes, strict=True))
    ordered = [name for name in VECTORS if name in known] + [name for name in names if name not in VECTORS]
    usable = [name for name in ordered if name.lower() not in CLASSES]
    if not usable or (len(known[usable[0]]) == 2 and known[usable[0]][1] in IMAGENET_CLASSES):
        raise ModelError(
            f"this is a classifier: its output is {', '.join(names)}",
            hint="export the network without its classification layer; class scores are no embedding",
        )
    shape = known[usable[0]]
    if len(shape) == 3 and math.isqrt(shape[1]) ** 2 == shape[1]:
        raise ModelError(
            f"this export gives {shape[1]} patch tokens and no class token",
            hint="export the class token or a pooled vector",
        )
    if len(shape) not in {2, 3} and not (len(shape) == 4 and shape[2:] == (1, 1)):
        raise ModelError(f"this export gives a tensor of shape {shape}, no vector", hint="export a pooled vector")
    return usable[0]


def _at_size(how: Preprocess, sides: Sequence[Any], path: Path) -> Preprocess:
    """The preprocessing at the size that the export is fixed to, in proportion."""
    if not all(isinstance(side, int) for side in sides) or tuple(sides) == how.size:
        return how
    if sides[0] != sides[1]:
        raise ModelError(f"{path} takes images of {sides[0]} x {sides[1]}", hint="export it for square images")
    scaled = round(how.resize_to * sides[0] / how.size[0])
    return replace(how, size=(int(sides[0]), int(sides[1])), resize_to=scaled)
