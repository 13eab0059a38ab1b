"""A text tower on ONNX Runtime, with the tokenizer that goes with it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.models.encoder import unit
from pgimgsearch.models.runtime.onnx_session import Session
from pgimgsearch.models.runtime.text_tokens import TextTokenizer

OUTPUTS = ("text_embeds", "text_vector", "pooler_output", "embedding")


class TextTower:
    """Texts to vectors. It takes token ids, and a mask where it asks for one."""

    def __init__(self, file: Path, tokenizer: TextTokenizer, device: str) -> None:
        self._session, self._tokenizer = Session(file, device), tokenizer
        known = [name for name in OUTPUTS if name in self._session.outputs]
        self._output = known[0] if known else self._session.outputs[0]
        self.dim = int(self.embed(["a"]).shape[-1])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, normalised."""
        ids, mask = self._tokenizer(texts)
        feeds = {
            one.name: (mask if "mask" in one.name else ids).astype(np.int32 if "int32" in one.type else np.int64)
            for one in self._session.inputs
        }
        return unit(self._session.run_feeds(feeds)[self._output].astype(np.float32))
