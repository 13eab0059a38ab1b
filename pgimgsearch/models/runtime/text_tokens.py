"""Token ids of texts by the library ``tokenizers`` alone: what an exported text tower takes."""

import html
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PUNCTUATION = str.maketrans("", "", string.punctuation)


SIGLIP_TEXT_LENGTH = 64


def lowers(tokenizer: str) -> bool:
    """Whether texts are lower-cased first, by a tokenizer's class: that of SigLIP 2 is mostly called Gemma's."""
    return any(name in tokenizer.lower() for name in ("gemma", "siglip2"))


def _basic(text: str) -> str:
    """As OpenAI's CLIP: mend mojibake, resolve entities, and join words by single spaces."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


# What happens to a text before its tokenizer sees it, by the name that an export notes.
CLEANERS: dict[str, Callable[[str], str]] = {
    "none": str,
    "lower-case": str.lower,
    "whitespace": _basic,
    "lower": lambda text: _basic(text).lower(),
    "canonicalize": lambda text: " ".join(_basic(text).replace("_", " ").translate(PUNCTUATION).lower().split()),
}


class TextTokenizer:
    """A ``tokenizers.Tokenizer`` or its file, which says how texts are cut and padded too, and what cleans them."""

    def __init__(self, tokenizer: Any, cleaner: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer)) if isinstance(tokenizer, Path) else tokenizer
        self._clean = CLEANERS[cleaner]
        self.context: int = (self._tokenizer.truncation or {"max_length": 0})["max_length"]

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and attention mask, each (n, length)."""
        encoded = self._tokenizer.encode_batch([self._clean(text) for text in texts])
        return (
            np.array([one.ids for one in encoded], dtype=np.int64),
            np.array([one.attention_mask for one in encoded], dtype=np.int64),
        )

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, those beyond ``context`` too."""
        encoded = self._tokenizer.encode_batch([self._clean(text) for text in texts])
        beyond = [sum(part.special_tokens_mask.count(0) for part in one.overflowing) for one in encoded]
        return [sum(one.attention_mask) + more for one, more in zip(encoded, beyond, strict=True)]
