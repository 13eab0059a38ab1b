"""What the built-in models share: an Encoder without weights, whose work is done in ``prepare``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.models.encoder import cannot_read
from pgimgsearch.models.fingerprint import fingerprint
from pgimgsearch.models.spec import ModelSpec


@dataclass
class WeightlessEncoder:
    """All of an Encoder but ``prepare``. ``constants`` stands for what the algorithm is made of."""

    spec: ModelSpec
    preprocess: dict[str, Any]
    constants: str
    device: str = "cpu"
    dtype: str = "fp32"
    runtime: str = "numpy"
    faster_dtypes: Sequence[str] = ()
    logit_scale: float | None = None
    logit_bias: float | None = None
    text_context = 0

    @property
    def reads_text(self) -> bool:
        """Whether the catalog says so."""
        return self.spec.text

    @property
    def dims(self) -> Mapping[str, int]:
        """The one output."""
        return {self.spec.output: self.spec.dim}

    def fingerprint(self, output: str) -> str:
        """Of the algorithm and its preprocessing; there are no weights."""
        return fingerprint(self.constants, self.preprocess, output)

    def embed(self, prepared: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Stack what ``prepare`` made."""
        return {self.spec.output: np.stack(prepared)}

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:  # noqa: ARG002
        """Refuse, unless a child knows words."""
        raise cannot_read(self.spec.name)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words."""
        return [len(text.split()) for text in texts]
