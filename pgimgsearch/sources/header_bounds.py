"""What images say before they are decoded: a few bytes may ask for hours."""

from collections.abc import Callable

from pgimgsearch.sources import jpeg
from pgimgsearch.sources.limits import TooManyPixels
from pgimgsearch.sources.tiff_tags import most_values

MOST_VALUES = 100_000  # of one tag of a TIFF: strips, tiles
MOST_SCANS = 200  # of a JPEG; libraries write up to 14, and each takes as long as the image is large
MOST_SCANNED = 2_000_000_000  # pixels in all scans of a JPEG: those of 100 megapixels have 14 scans at most
MOST_SEGMENTS = 5000  # of a JPEG: 64 kB each of a description, of which Pillow copies all that it has at each


def _scanned(data: bytes) -> int:
    """How many pixels all scans of a JPEG have, up to just over ``MOST_SCANNED``."""
    pixels = jpeg.pixels(data)
    return jpeg.scans(data, MOST_SCANNED // pixels + 1) * pixels if pixels else 0


BOUNDS: list[tuple[Callable[[bytes], int], int, str]] = [
    (most_values, MOST_VALUES, "a TIFF with a tag of {} values"),
    (lambda data: jpeg.segments(data, MOST_SEGMENTS + 1), MOST_SEGMENTS, "a JPEG of {} segments or more"),
    (lambda data: jpeg.scans(data, MOST_SCANS + 1), MOST_SCANS, "a JPEG of {} scans or more"),
    (_scanned, MOST_SCANNED, "a JPEG of {} pixels in all scans or more"),
]


def check_header(data: bytes) -> None:
    """Raise TooManyPixels for an image whose header asks for very much more than its size says."""
    for count, most, what in BOUNDS:
        if (found := count(data)) > most:
            raise TooManyPixels(f"{what.format(found)} is not decoded; {most} are the limit")
