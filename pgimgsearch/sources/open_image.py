"""Open one image by its location, within limits: what every part of the program uses that needs pixels."""

from PIL import Image

from pgimgsearch.sources.decode import decode, decode_small, limit_pixels
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits
from pgimgsearch.sources.read import read_bytes


def open_image(location: str, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Read and decode an image, upright and in RGB; raises what ``read_bytes`` and ``decode`` raise."""
    limit_pixels(limits.max_pixels)
    return decode(read_bytes(location, limits.max_bytes), limits)[0]


def open_thumbnail(location: str, side: int, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The same, at most ``side`` pixels wide and high; JPEGs are decoded at reduced scale."""
    limit_pixels(limits.max_pixels)
    return decode_small(read_bytes(location, limits.max_bytes), side, limits)
