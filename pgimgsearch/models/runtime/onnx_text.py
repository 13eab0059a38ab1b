"""A text tower on ONNX Runtime, with the tokenizer that goes with it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import unit
from pgimgsearch.models.runtime.onnx_session import Session
from pgimgsearch.models.runtime.text_tokens import TextTokenizer

INPUTS = {"input_ids", "text", "tokens", "ids", "attention_mask", "mask", "token_type_ids"}
OUTPUTS = ("text_embeds", "text_vector", "pooler_output", "embedding")


class TextTower:
    """Texts to vectors. It takes token ids, and a mask where it asks for one."""

    def __init__(self, file: Path, tokenizer: TextTokenizer, device: str) -> None:
        self._session, self.tokenizer = Session(file, device), tokenizer
        known = [name for name in OUTPUTS if name in self._session.outputs]
        self._output = known[0] if known else self._session.outputs[0]
        unknown = [one.name for one in self._session.inputs if one.name not in INPUTS]
        if unknown and len(self._session.inputs) > 1:  # a single one is token ids, by whatever name
            raise ModelError(
                f"the text tower {file} takes {', '.join(unknown)}, which is not known",
                hint="export it with token ids, and perhaps a mask, as its inputs",
            )
        self.dim = int(self.embed(["a"]).shape[-1])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, normalised."""
        size = self._session.fixed_batch or len(texts)
        parts = [list(texts[start : start + size]) for start in range(0, len(texts), size)]
        vectors = [self._run(part + part[-1:] * (size - len(part))) for part in parts]
        return unit(np.concatenate(vectors)[: len(texts)])

    def _run(self, texts: Sequence[str]) -> NDArray[np.float32]:
        ids, mask = self.tokenizer(texts)
        feeds = {}
        for one in self._session.inputs:
            value = mask if "mask" in one.name else np.zeros_like(ids) if "token_type" in one.name else ids
            feeds[one.name] = value.astype(np.int32 if "int32" in one.type else np.int64)
        return self._session.run_feeds(feeds)[self._output].astype(np.float32)
