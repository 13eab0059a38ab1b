"""A model of the database with its network: what comes out of a forward pass, as it is stored or asked with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings.binary_copy import as_column
from pgimgsearch.models.encoder import Encoder, cannot_read, unit
from pgimgsearch.models.reduction import Reduction

TEXTS_AT_ONCE = 256
SHOWN = 40  # characters of a text
LONGEST_WORD = 200  # characters: some tokenizers take the square of it
LONG_WORD = re.compile(rf"(\S{{{LONGEST_WORD}}})(?=\S)")


@dataclass(frozen=True, slots=True)
class CutText:
    """A text, in its template, of which a model reads the first tokens alone."""

    text: str
    read: int
    tokens: int

    def said_of(self, model: str) -> str:
        """In words."""
        shown = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}..."
        return f'{model} reads the first {self.read} of {self.tokens} tokens of "{shown}"'


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model of the database, ready to embed. Models that are outputs of one network share their encoder."""

    stored: StoredModel
    encoder: Encoder
    batch_size: int
    reduction: Reduction | None = None

    def vectors(self, outputs: Mapping[str, NDArray[Any]], *, normalize: bool | None = None) -> NDArray[Any]:
        """(n, dim) float32 of a forward pass, reduced, and to length one as this model or ``normalize`` wants.

        Bits stay bits, 0 or 1.
        """
        vectors = outputs[self.stored.output]
        if self.stored.storage == "bit":
            return vectors
        if self.reduction is not None:
            vectors = self.reduction.apply(vectors)
        return unit(vectors) if (self.stored.normalize if normalize is None else normalize) else vectors

    def storable(self, outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The same in the type of the column: packed bits (uint8), float16 or float32."""
        return as_column(self.vectors(outputs), self.stored.storage)

    def embed_texts(self, texts: Sequence[str], template: str = "{}") -> NDArray[np.float32]:
        """(n, dim) float32, normalised: of each text in each line of ``template``, averaged."""
        forms = self.text_forms(texts, template)
        starts = range(0, len(forms), TEXTS_AT_ONCE)
        parts = [self.encoder.embed_text(forms[start : start + TEXTS_AT_ONCE]) for start in starts]
        return self.text_vectors(np.concatenate(parts), len(texts))

    def text_forms(self, texts: Sequence[str], template: str) -> list[str]:
        """Every text in every line of a template, as the encoder reads them; raises ModelError if it reads none."""
        if not self.stored.has_text:
            raise cannot_read(self.stored.name)
        forms = [line.replace("{}", text) for text in texts for line in template.split("\n")]
        return [LONG_WORD.sub(r"\1 ", form) if len(form) > LONGEST_WORD else form for form in forms]

    def long_forms(self, texts: Sequence[str], template: str = "{}") -> list[str]:
        """The forms that may have more tokens than are read, as a token has a byte at least."""
        context = self.encoder.text_context
        return [form for form in self.text_forms(texts, template) if 0 < context < len(form.encode()) + 2]

    def cut_texts(self, forms: Sequence[str]) -> list[CutText]:
        """Those forms that have more tokens than are read, and are cut."""
        context = self.encoder.text_context
        counts = [(form, tokens) for form, tokens in zip(forms, self.encoder.count_tokens(forms), strict=True)]
        return [CutText(form, context, tokens) for form, tokens in counts if tokens > context]

    def text_vectors(self, embedded: NDArray[np.float32], texts: int) -> NDArray[np.float32]:
        """(texts, dim) float32, normalised, of all forms as the encoder embedded them."""
        vectors = unit(embedded.reshape(texts, -1, embedded.shape[1]).mean(axis=1))
        return unit(self.reduction.apply(vectors)) if self.reduction is not None else vectors

    def with_batch_size(self, size: int) -> "LoadedModel":
        """The same in other batches."""
        return replace(self, batch_size=size)


def rejection_reason(vector: NDArray[Any]) -> str | None:
    """Why a vector must not be stored: it has no direction, so it is like nothing or like everything."""
    if vector.dtype == np.uint8:
        return None
    if not np.isfinite(vector).all():
        return "the vector is not finite"
    return None if vector.any() else "the vector is zero"
