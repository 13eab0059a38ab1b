"""PDQ, a perceptual hash of 256 bits with a quality (Meta, https://github.com/facebook/ThreatExchange)."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.models.backends import Backend
from pgimgsearch.models.encoder import Placement, SkippedImage
from pgimgsearch.models.runtime.weightless import WeightlessEncoder
from pgimgsearch.models.spec import ModelSpec

BACKEND = Backend(package="pdqhash", has_weights=False, made_for_copies=True)

LONGEST_SIDE = 512  # the hash sees 64 x 64; a larger image is only slower
LOWEST_QUALITY = 50  # the paper discards 49 and less: flat images match everything


class Pdq(WeightlessEncoder):
    """An Encoder whose work is done in ``prepare``, so that it runs beside the decoding."""

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """The 256 bits of an image; raises SkippedImage where its quality is too low."""
        import pdqhash

        small = image._new(image.im)
        small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
        bits, quality = pdqhash.compute(np.ascontiguousarray(small))
        if quality < LOWEST_QUALITY:
            raise SkippedImage(f"hash quality {quality} is below {LOWEST_QUALITY}: too little detail to tell copies")
        return np.asarray(bits, dtype=np.uint8)


def load(spec: ModelSpec, placement: Placement) -> Pdq:  # noqa: ARG001  (there is nothing to put on a device)
    """Nothing to load."""
    return Pdq(spec, {"longest_side": LONGEST_SIDE}, "pdq-1")
