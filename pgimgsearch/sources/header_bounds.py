"""What images say before they are decoded: a few bytes may ask for hours or gigabytes."""

from collections.abc import Callable

from pgimgsearch.sources import avif, jpeg
from pgimgsearch.sources.jpeg2000 import most_tiles
from pgimgsearch.sources.limits import TooManyPixels
from pgimgsearch.sources.tiff_tags import most_values, tile_pixels

MOST_VALUES = 100_000  # of one tag of a TIFF: strips, tiles
MOST_TILE = 1 << 22  # pixels of a tile of a TIFF that is larger than the image
MOST_TILES = 5000  # of JPEG 2000, each of which takes some 12 kB
MOST_SCANS = 200  # of a JPEG; libraries write up to 14, and each takes as long as the image is large
MOST_SEGMENTS = 5000  # of a JPEG: 64 kB each of a description, of which Pillow copies all that it has at each

BOUNDS: list[tuple[Callable[[bytes], int], int, str]] = [
    (most_values, MOST_VALUES, "a TIFF with a tag of {} values"),
    (tile_pixels, MOST_TILE, "a small TIFF in a tile of {} pixels"),
    (most_tiles, MOST_TILES, "a JPEG 2000 of {} tiles"),
    (lambda data: jpeg.segments(data, MOST_SEGMENTS + 1), MOST_SEGMENTS, "a JPEG of {} segments or more"),
    (lambda data: jpeg.scans(data, MOST_SCANS + 1), MOST_SCANS, "a JPEG of {} scans or more"),
]


def check_header(data: bytes, max_pixels: int) -> None:
    """Raise TooManyPixels for an image whose header asks for very much more than its size says."""
    for count, most, what in BOUNDS:
        if (found := count(data)) > most:
            raise TooManyPixels(f"{what.format(found)} is not decoded; {most} are the limit")
    if (pixels := avif.largest_frame(data)) == avif.UNKNOWN:
        raise TooManyPixels("an AVIF that hides how large it is")
    if pixels > max_pixels:
        raise TooManyPixels(f"a stream of {pixels} pixels is over the limit of {max_pixels / 1e6:g} megapixels")
