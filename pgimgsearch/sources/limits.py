"""Bounds on one image file: what exceeds them is refused before it is read or decoded."""

from dataclasses import dataclass


class TooManyPixels(ValueError):  # noqa: N818  (its name is what ingest_failure stores)
    """The image is larger than the limit; it was not decoded."""


class TooCostly(ValueError):  # noqa: N818  (its name is what ingest_failure stores)
    """Decoding the image takes far more memory or time than its size says."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The most pixels and bytes that one image may have."""

    max_pixels: int = 100_000_000
    max_bytes: int = 256_000_000


DEFAULT_LIMITS = ImageLimits()
