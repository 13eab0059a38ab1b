"""A network that was exported to ONNX, from the cache: neither torch nor the library it came from is needed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import Placement, cannot_read, unit
from pgimgsearch.models.preprocess import to_array
from pgimgsearch.models.runtime.cpu_features import faster_dtypes
from pgimgsearch.models.runtime.export_cache import Export
from pgimgsearch.models.runtime.onnx_session import Session
from pgimgsearch.models.runtime.onnx_text import TextTower
from pgimgsearch.models.runtime.text_tokens import TextTokenizer
from pgimgsearch.models.spec import ModelSpec, preprocess_from

LEAST_INT8_COSINE = 0.99


class ExportedEncoder:
    """An Encoder around the sessions of an export; in int8 where ``int8`` is the file of its image tower."""

    runtime = "onnx"

    def __init__(
        self, spec: ModelSpec, folder: Path, found: Export, placement: Placement, int8: Path | None = None
    ) -> None:
        self._export, self._folder, self._placement = found, folder, placement
        self._images = Session(int8 or folder / "image" / "model.onnx", placement.device)
        self._texts: TextTower | None = None
        if found.cleaner is not None:
            tokenizer = TextTokenizer(folder / "tokenizer.json", found.cleaner)
            self._texts = TextTower(folder / "text" / "model.onnx", tokenizer, placement.device)
        self._how = preprocess_from(found.preprocess)
        self.device, self.dtype = self._images.device, "int8" if int8 else "fp32"
        self.preprocess = self._how.as_dict()
        self.dims: Mapping[str, int] = found.dims
        self.faster_dtypes: Sequence[str] = () if int8 else faster_dtypes(matrix_products=found.matrix_products)
        self.reads_text = self._texts is not None
        self.text_context = 0 if self._texts is None else self._texts.tokenizer.context
        self.logit_scale, self.logit_bias = found.logit_scale, found.logit_bias
        output = next(iter(found.dims)) if spec.output == "auto" else spec.output
        self.spec = replace(spec, output=output, dim=found.dims.get(output, 0), revision=found.revision)

    def fingerprint(self, output: str) -> str:
        """Of the network that was exported: the runtime is no part of it."""
        return self._export.fingerprints[output]

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """(3, height, width) float32."""
        return to_array(image, self._how)

    def embed(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Output -> (n, dim) float32."""
        return self._images.run(prepared)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, normalised."""
        if self._texts is None:
            raise cannot_read(self.spec.name)
        return self._texts.embed(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, those that are not read too."""
        return [] if self._texts is None else self._texts.tokenizer.count(texts)

    def check(self, prepared: Sequence[NDArray[Any]]) -> float:
        """The lowest cosine of int8 with fp32 over prepared images; raises ModelError below 0.99."""
        full = ExportedEncoder(self.spec, self._folder, self._export, self._placement)
        ours, theirs = self.embed(prepared), full.embed(prepared)
        lowest = min(float((unit(ours[name]) * unit(theirs[name])).sum(1).min()) for name in self.dims)
        if not lowest >= LEAST_INT8_COSINE:
            raise ModelError(
                f"{self.spec.name} in {self.dtype} is not the same model: cosine {lowest:.4f} "
                f"with fp32 on one of {len(prepared)} of these images, at least {LEAST_INT8_COSINE} is needed",
                hint="run without --dtype int8",
            )
        return lowest
