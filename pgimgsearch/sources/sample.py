"""A fair sample of a source's images, for what has to be fitted or checked before a run."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.models.encoder import Encoder, SkippedImage
from pgimgsearch.sources.decode import decode, limit_pixels
from pgimgsearch.sources.limits import ImageLimits
from pgimgsearch.sources.read import content
from pgimgsearch.sources.source import ScannedFile, Source

SEED = 20
MOST_STREAMED = 256 << 20  # bytes of a shard's beginning, as all of it has to be read to draw from all of it


def sample_images(sources: Sequence[Source], count: int, limits: ImageLimits) -> Iterator[Image.Image]:
    """At most ``count`` images, the same in every run over the same files; those that cannot be read are left out."""
    limit_pixels(limits.max_pixels)
    chosen: list[ScannedFile] = []
    streamed = 0
    generator = random.Random(SEED)  # noqa: S311  (a sample, no secret)
    listed = (file for source in sources for file in source.files(source.root or ""))
    for number, file in enumerate(listed):  # a reservoir: one pass, whatever the size
        if number < count:
            chosen.append(file)
        elif (place := generator.randint(0, number)) < count:
            chosen[place] = file
        streamed += len(file.data or b"")
        if streamed > MOST_STREAMED:
            break
    generator.shuffle(chosen)
    for file in chosen:
        try:
            yield decode(content(file, limits.max_bytes), limits)[0]
        except Exception:  # noqa: S112  (the run that follows reads it again, and records why it fails)
            continue


def prepared_sample(
    encoder: Encoder, sources: Sequence[Source], count: int, limits: ImageLimits
) -> Iterator[NDArray[Any]]:
    """The same, prepared for a model; those that it skips are left out."""
    for picture in sample_images(sources, count, limits):
        try:
            yield encoder.prepare(picture)
        except SkippedImage:
            continue
