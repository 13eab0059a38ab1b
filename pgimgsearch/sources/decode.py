"""From bytes to an upright RGB image, whatever Pillow reads plus HEIC and AVIF."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.Image import Transpose

from pgimgsearch.sources.avif import largest_frame
from pgimgsearch.sources.header_bounds import MOST_VALUES, check_header
from pgimgsearch.sources.libtiff import explained
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits, TooManyPixels
from pgimgsearch.sources.tiff_tags import most_values

# EXIF tag 0x0112 (CIPA DC-008): what transforms the stored pixels upright
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
MOST_EXIF = 1 << 20  # bytes
MARK = 64  # bytes by which a format is known
STRIP = 1 << 20  # pixels that are hashed at once
BYTES_A_PIXEL = 9  # as it is decoded, rotated or converted: two of Pillow's pixels
BYTES_OF_LIBRARY = {"WEBP": 9, "JPEG2000": 13, "AVIF": 4, "HEIF": 2}  # more than Pillow's own
SLOW = 50  # times as long takes a pixel that Pillow decodes in Python (DDS with masks, QOI, PPM as text, BMP with RLE)
# What is decoded: none that runs a program (EPS in Ghostscript, WMF), or decodes whatever is inside before it can be
# bounded (IPTC, ICO, ICNS).
FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "MPO", "PCX", "PNG", "PPM",
    "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip


# What else files are, by their first bytes in lower case.
NOT_READ = {
    b"%!ps": "PostScript (EPS)", b"%pdf": "PDF", b"\xd7\xcd\xc6\x9a": "WMF", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjxl ": "JPEG XL", b"<svg": "SVG", b"<?xml": "SVG or XML", b"<!doctype html": "an HTML page",
    b"<html": "an HTML page", b"\0\0\1\0": "an icon (ICO)", b"icns": "an icon (ICNS)",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is stored of an image; sizes are of the upright pixels."""

    pixel_hash: bytes
    width: int
    height: int
    format: str


@cache
def register_formats() -> frozenset[str]:
    """Teach Pillow HEIC and return the file extensions (with dot, lower case) of all that is decoded."""
    import pillow_heif  # 0.1 s

    pillow_heif.register_heif_opener()
    Image.init()
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in FORMATS)


def begins_like_an_image(data: bytes) -> bool:
    """Whether a file's first bytes are those of a format that is decoded, by those that have a mark."""
    register_formats()
    marks = [Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN]
    padded = data.ljust(MARK, b"\0")  # as some marks are unpacked, however few bytes there are
    return any(mark is not None and mark(padded) is True for mark in marks)


def decode(
    data: bytes, limits: ImageLimits = DEFAULT_LIMITS, reserve: Callable[[int], None] = lambda _: None
) -> tuple[Image.Image, ImageFacts]:
    """Decode the first frame into an upright RGB image, transparency laid on white.

    ``reserve`` is called with the bytes that decoding needs, before they are allocated.
    Raises what Pillow raises for broken bytes, and TooManyPixels before anything large is decoded.
    """
    try:
        with explained():
            return _decode(data, limits, reserve)
    except Image.DecompressionBombError as error:  # found by Pillow, perhaps inside a container
        raise _too_many(error) from error


def _too_many(error: Exception) -> TooManyPixels:
    return TooManyPixels(str(error).removesuffix(", could be decompression bomb DOS attack."))


def decode_pixels(data: bytes) -> Image.Image:
    """The same image within the usual limits, without its facts, whose hash takes as long as decoding."""
    try:
        with explained():
            return _pixels(data, DEFAULT_LIMITS, lambda _: None)[0]
    except Image.DecompressionBombError as error:
        raise _too_many(error) from error


@dataclass(frozen=True, slots=True)
class DecodingCost:
    """How many pixels an image says to have, ``SLOW`` times that for a format in Python, and the memory for them."""

    pixels: int = 0
    bytes: int = 0


def decoding_cost(data: bytes) -> DecodingCost:
    """What decoding an image would cost; nothing where it cannot be read."""
    try:
        with explained(), _open(data, DEFAULT_LIMITS) as image:
            in_python = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
            pixels = _pixels_of(image, data)
            return DecodingCost(pixels * (SLOW if in_python else 1), pixels * bytes_a_pixel(image))
    except Exception:  # broken bytes raise anything, and do so again where they are decoded
        return DecodingCost()


def decode_small(data: bytes, side: int, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode into an upright RGB image of at most ``side`` pixels; raises like ``decode``."""
    with explained(), _open(data, limits) as image:
        image.draft("RGB", (side, side))
        image.load()
        image.thumbnail((side, side))
        upright = turn_upright(image)
        return on_white(upright.convert("RGBA")) if upright.has_transparency_data else to_rgb(upright)


def limit_pixels(max_pixels: int) -> None:
    """Let Pillow itself refuse more, also inside containers; the setting is Pillow's, for the whole process."""
    Image.MAX_IMAGE_PIXELS = max_pixels // 2  # it refuses twice this


def _decode(data: bytes, limits: ImageLimits, reserve: Callable[[int], None]) -> tuple[Image.Image, ImageFacts]:
    rgb, full, kind = _pixels(data, limits, reserve)
    digest = hashlib.sha256(f"{full.mode} {full.width} {full.height} ".encode())
    rows = max(1, STRIP // full.width)
    for top in range(0, full.height, rows):  # so that the pixels are not there twice
        digest.update(full.crop((0, top, full.width, min(full.height, top + rows))).tobytes())
    return rgb, ImageFacts(digest.digest(), rgb.width, rgb.height, kind)


def _pixels(data: bytes, limits: ImageLimits, reserve: Callable[[int], None]) -> tuple[Image.Image, Image.Image, str]:
    """The image in RGB, with its transparency where it has one, and its format."""
    with _open(data, limits) as image:
        kind = image.format or "unknown"
        reserve(_pixels_of(image, data) * bytes_a_pixel(image))
        image.load()
        upright = turn_upright(image)
        clear = upright.has_transparency_data and not upright.mode.startswith(("I", "F"))
        if upright is not image:
            image.close()  # it is large, and no longer needed
        full = _in_mode(upright, "RGBA") if clear else to_rgb(upright)
    return on_white(full) if clear else full, full, kind


def _pixels_of(image: Image.Image, data: bytes) -> int:
    """How many are decoded: of AVIF those of its streams, which are scaled to what its header says."""
    return max(image.width * image.height, largest_frame(data))


def bytes_a_pixel(image: Image.Image) -> int:
    """How much memory decoding takes at its peak, measured for each format: its library's buffers and our steps."""
    library = BYTES_OF_LIBRARY.get(image.format or "", 0)
    deep = 8 if image.mode.startswith(("I", "F")) else 0
    clear = 8 if image.mode in {"LA", "PA"} else 4 if image.has_transparency_data else 0
    return BYTES_A_PIXEL + library + deep + clear


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converted, without a copy where it has that mode."""
    return image if image.mode == mode else image.convert(mode)


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    register_formats()
    check_header(data, limits.max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=[one for one in FORMATS if one in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise _too_many(error) from error
    except UnidentifiedImageError as error:  # its message names the buffer, which says nothing
        start = data[:100].lstrip().lower()
        kind = next((name for mark, name in NOT_READ.items() if start.startswith(mark)), None)
        raise UnidentifiedImageError(
            f"{kind} is not read" if kind else "the bytes are not an image that can be read"
        ) from error
    if image.width * image.height > limits.max_pixels:
        image.close()
        size = f"{image.width} x {image.height}"
        raise TooManyPixels(f"{size} is over the limit of {limits.max_pixels / 1e6:g} megapixels")
    return image


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    orientation = orientation_of(image)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def orientation_of(image: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8, or whatever the file says it is; unreadable EXIF counts as none."""
    exif = image.info.get("exif") or b""
    if most_values(exif.removeprefix(b"Exif\0\0")) > MOST_VALUES or len(exif) > MOST_EXIF:
        return 1
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF raises whatever its bytes lead the parser to, and the pixels are fine
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode without transparency to RGB; more than 8 bits are scaled, not clipped."""
    if image.mode.startswith(("I", "F")):
        return eight_bits(image).convert("RGB")
    if image.mode == "LAB":
        to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, to_srgb)
        assert converted is not None, "only an in-place transform returns None"
        return converted
    return _in_mode(image, "RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 or 32 bits to 8: by their range where it is known, else by what the image uses."""
    low, high = float("inf"), float("-inf")
    for _, values in _strips(image):
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if image.mode == "F" and low >= 0 and high <= 1:
        start, factor, divisor = 0.0, 255.0, 1.0
    elif low >= 0 and high <= 255 and image.mode in {"I", "F"}:
        start, factor, divisor = 0.0, 1.0, 1.0
    elif low >= 0 and high <= 65535:
        start, factor, divisor = 0.0, 1.0, 257.0
    else:
        start, factor, divisor = low, 255.0, max(high - low, 1e-9)
    grey = np.empty((image.height, image.width), np.uint8)
    for top, values in _strips(image):
        grey[top : top + len(values)] = np.rint((values - start) / divisor * factor)
    return Image.fromarray(grey)


def _strips(image: Image.Image) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The values of some rows at a time, as finite float64, and the number of the first row."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(image.height, top + rows)))
        yield top, np.nan_to_num(np.asarray(part, dtype=np.float64))


def on_white(image: Image.Image) -> Image.Image:
    """Lay an RGBA image on white, some rows at a time, as each step takes as much memory again."""
    flat = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        white = Image.new("RGBA", strip.size, "white")
        flat.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return flat
