"""PDQ, a perceptual hash of 256 bits with a quality (Meta, https://github.com/facebook/ThreatExchange)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pdqhash
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import SkippedPicture
from pgimgsearch.models.fingerprint import fingerprint
from pgimgsearch.models.spec import ModelSpec

LONGEST_SIDE = 512  # the hash sees 64 x 64; a larger picture is only slower
LOWEST_QUALITY = 50  # the paper discards 49 and less: flat pictures match everything


@dataclass
class Pdq:
    """An Encoder whose work is done in ``prepare``, so that it runs beside the decoding."""

    spec: ModelSpec
    device: str = "cpu"
    preprocess: dict[str, Any] = field(default_factory=lambda: {"longest_side": LONGEST_SIDE})
    logit_scale: float | None = None
    logit_bias: float | None = None

    @property
    def fingerprint(self) -> str:
        """Of the algorithm and its preprocessing; there are no weights."""
        return fingerprint([], self.preprocess, "pdq-1")

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """The 256 bits of a picture; raises SkippedPicture where its quality is too low."""
        small = image.copy()
        small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
        bits, quality = pdqhash.compute(np.ascontiguousarray(small))
        if quality < LOWEST_QUALITY:
            raise SkippedPicture(f"hash quality {quality} is below {LOWEST_QUALITY}: too little detail to tell copies")
        return np.asarray(bits, dtype=np.uint8)

    def embed(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
        """Stack the hashes: (n, 256), 0 or 1."""
        return np.stack(prepared)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:  # noqa: ARG002
        """Refuse: a hash knows no words."""
        raise ModelError(
            "model pdq cannot read text", hint="use a model that can, for example palette or clip-vit-b-32"
        )


def load(spec: ModelSpec, device: str) -> Pdq:  # noqa: ARG001  (there is nothing to put on a device)
    """Nothing to load."""
    return Pdq(spec)
