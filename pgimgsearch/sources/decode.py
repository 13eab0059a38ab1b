"""From bytes to an upright RGB image, whatever Pillow reads plus HEIC and AVIF."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.Image import Transpose

from pgimgsearch.sources.color_profile import BrokenProfile, ColorProfile, from_lab, profile_of, to_srgb, unusable
from pgimgsearch.sources.decoder_process import ask, is_trusted
from pgimgsearch.sources.depth import eight_bits
from pgimgsearch.sources.exif import hides_exif, orientation_of, taken
from pgimgsearch.sources.ground import is_opaque, on_ground
from pgimgsearch.sources.header_bounds import check_header
from pgimgsearch.sources.identity import bits_of, loses_bits, pixel_hash
from pgimgsearch.sources.libtiff import explained
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits, TooManyPixels
from pgimgsearch.sources.odd_structure import bytes_besides, is_ambiguous
from pgimgsearch.sources.origin import origin
from pgimgsearch.sources.png_chunks import look_at
from pgimgsearch.sources.tiff_tags import KIND, described, directory

# EXIF tag 0x0112 (CIPA DC-008): what transforms the stored pixels upright
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
MOST_SIDE = 1 << 20  # pixels: Pillow holds more of a row than its pixels
MARK = 64  # bytes by which a format is known
LITTLE = 1000  # bytes behind an image that are nothing to lose
END_OF_JPEG, OTHER_BITS = b"\xff\xd9", b"\xaa\x55\x36\xc9" * 256
KEPT = {"I", "F", "CMYK", "LAB"}  # modes in which an image is hashed as it is
PHOTOMETRIC = 262  # a tag of TIFF
WHITE_TAGS = (50717, 281)  # of a TIFF: WhiteLevel (DNG 1.7) and MaxSampleValue
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
    """What is stored of an image; sizes are of the upright pixels.

    ``pixel_hash`` is None where only equal bytes are known to be identical; ``notes`` tell of what was odd. ``about``
    is what a person would lose with the file: ``taken_at``, ``camera``, ``latitude``, ``longitude``, ``tags`` of EXIF,
    ``origin`` (see there), ``depth`` in bits where it is more than 8, ``frames`` where there are more, ``extra``
    bytes besides the image, and ``transparent``.
    """

    pixel_hash: bytes | None
    width: int
    height: int
    format: str
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


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
    """Decode the frame that viewers show first into an upright image in sRGB, on a ground that keeps a drawing visible.

    ``reserve`` is called with the bytes that decoding needs, before they are allocated.
    Raises what Pillow raises for broken bytes, and TooManyPixels before anything large is decoded.
    """
    if is_trusted(data):
        with suppress(_SeveralFrames):
            return decode_here(data, limits, lambda count, _: reserve(count), alone=True)
    about, image = ask("decode", data, limits, reserve)
    assert image is not None
    digest = about["pixel_hash"] and bytes.fromhex(about["pixel_hash"])
    return image, ImageFacts(
        digest, image.width, image.height, about["format"], tuple(about["notes"]), about["about"]
    )  # fmt: skip


def decode_pixels(data: bytes) -> Image.Image:
    """The same image within the usual limits, without its facts, whose hash takes as long as decoding."""
    if is_trusted(data):
        return decode_pixels_here(data)
    _, image = ask("pixels", data, DEFAULT_LIMITS)
    assert image is not None
    return image


def decode_small(data: bytes, side: int, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The same image, at most ``side`` pixels wide and high."""
    if is_trusted(data):
        return decode_small_here(data, side, limits)
    _, image = ask("small", data, limits, side=side)
    assert image is not None
    return image


@dataclass(frozen=True, slots=True)
class DecodingCost:
    """How many pixels an image says to have, ``SLOW`` times that for a format in Python, and the memory for them."""

    pixels: int = 0
    bytes: int = 0


def decoding_cost(data: bytes) -> DecodingCost:
    """What decoding an image would cost; nothing where it cannot be read."""
    if is_trusted(data):
        return decoding_cost_here(data)
    try:
        about, _ = ask("cost", data, DEFAULT_LIMITS)
    except Exception:  # and so it does where it is decoded
        return DecodingCost()
    return DecodingCost(about["pixels"], about["bytes"])


Reserve = Callable[[int, int], None]  # bytes, and the pixels that they are for


class _SeveralFrames(Exception):  # noqa: N818  (a finding, not an error)
    """An image has frames besides the first, which may be of any size."""


def decode_here(
    data: bytes, limits: ImageLimits, reserve: Reserve, *, alone: bool = False
) -> tuple[Image.Image, ImageFacts]:  # fmt: skip
    """``decode`` in this process; ``alone`` raises _SeveralFrames for an image that has more than one."""
    with _explained(), _loaded(data, limits, reserve, alone=alone) as file:
        frame, profile = _shown(file.image, file.notes)
        several = getattr(file.image, "is_animated", False)
        if several and frame is file.image:
            frame = frame.copy()  # as the file goes on to other frames
        deep = loses_bits(file.image, file.depth, data)
        depth = 16 if deep else bits_of(frame)
        about = _about(file, data, depth, several=several, is_clear=frame.mode == "RGBA")
        if deep or _is_ambiguous(file, data, several=several):
            digest = None
        else:
            if not several and frame is not file.image:
                file.image.close()  # it is large, and no longer needed
            shown = frame, (profile.meaning if profile else b"") + file.meaning
            digest = pixel_hash(file.image if several else None, shown, _frame, limits.max_pixels)
        rgb = _rgb(frame, profile, file)
    return rgb, ImageFacts(digest, rgb.width, rgb.height, file.kind, tuple(dict.fromkeys(file.notes)), about)


def _is_ambiguous(file: "_File", data: bytes, *, several: bool) -> bool:
    """Whether others may show the file differently, or more is in it than is decoded."""
    return (
        file.is_ambiguous
        or hides_exif(file.image)
        or (file.is_animated and not several)
        or (file.kind == "PSD" and several)
        or is_ambiguous(file.kind, data)
    )


def _about(file: "_File", data: bytes, depth: int, *, several: bool, is_clear: bool) -> dict[str, Any]:
    """See ImageFacts."""
    found = taken(file.image)
    if found and (made := origin(file.kind, data, found)):
        found["origin"] = made
    if depth > 8:
        found["depth"] = depth
    if several:
        found["frames"] = int(getattr(file.image, "n_frames", 2))
    if (extra := file.extra + bytes_besides(file.kind, data)) > LITTLE:
        found["extra"] = extra
    if is_clear:
        found["transparent"] = True
    return found


def decode_pixels_here(
    data: bytes, limits: ImageLimits = DEFAULT_LIMITS, reserve: Reserve = lambda _, __: None
) -> Image.Image:
    """``decode_pixels`` in this process."""
    with _explained(), _loaded(data, limits, reserve) as file:
        return _rgb(*_shown(file.image, file.notes), file)


def decode_small_here(
    data: bytes, side: int, limits: ImageLimits, reserve: Reserve = lambda _, __: None
) -> Image.Image:  # fmt: skip
    """``decode_small`` in this process."""
    with _explained(), _loaded(data, limits, reserve, side) as file:
        file.image.thumbnail((side, side))
        return _rgb(*_shown(file.image, file.notes), file)


def decoding_cost_here(data: bytes) -> DecodingCost:
    """``decoding_cost`` in this process."""
    try:
        with _explained(), _open(data, DEFAULT_LIMITS).image as image:
            in_python = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
            pixels = image.width * image.height
            return DecodingCost(pixels * (SLOW if in_python else 1), pixels * bytes_a_pixel(image))
    except Exception:  # broken bytes raise anything, and do so again where they are decoded
        return DecodingCost()


def limit_pixels(max_pixels: int) -> None:
    """Let Pillow itself refuse more, also inside containers; the setting is Pillow's, for the whole process."""
    Image.MAX_IMAGE_PIXELS = max_pixels // 2  # it refuses twice this


@contextmanager
def _explained() -> Iterator[None]:
    """Errors with what libtiff says, and bombs that Pillow found, perhaps inside a container, as too many pixels."""
    try:
        with explained():
            yield
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error).removesuffix(", could be decompression bomb DOS attack.")) from error


@dataclass(slots=True)
class _File:
    """An image that is opened, and what its file says besides: bits a channel, and the value that means white."""

    image: Image.Image
    kind: str
    depth: int = 8
    white: float | None = None
    is_negative: bool = False  # white is 0, which Pillow leaves as it is where there are more than eight bits
    is_ambiguous: bool = False  # by the chunks of a PNG
    is_animated: bool = False  # by what the file says of frames, which Pillow may not read
    extra: int = 0  # bytes of chunks that are not known, and behind a PNG
    meaning: bytes = b""  # what the file says of its values besides
    notes: list[str] = field(default_factory=list)


@contextmanager
def _loaded(
    data: bytes, limits: ImageLimits, reserve: Reserve, side: int | None = None, *, alone: bool = False
) -> Iterator[_File]:  # fmt: skip
    """An image whose pixels are decoded, a JPEG at a reduced scale of at least ``side``."""
    file = _open(data, limits)
    with file.image:
        if alone and getattr(file.image, "is_animated", False):
            raise _SeveralFrames
        pixels = file.image.width * file.image.height
        reserve(pixels * bytes_a_pixel(file.image), pixels)
        if side is not None:
            file.image.draft("RGB", (side, side))
        try:
            file.image.load()
        except OSError:
            if file.image.format not in {"JPEG", "MPO"}:
                raise
            reserve(2 * pixels * bytes_a_pixel(file.image), 2 * pixels)
            image, other = (_ended(data + more) for more in (b"", OTHER_BITS))
            if ImageChops.difference(image, other).getbbox() is not None:
                raise  # as pixels are missing, which are whatever bits follow
            file.image = image
            file.notes.append("it ends without its end mark")
        yield file


def _ended(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data + END_OF_JPEG), formats=["JPEG"])
    image.load()
    return image


def _open(data: bytes, limits: ImageLimits) -> _File:
    register_formats()
    check_header(data)
    png = look_at(data)
    try:
        image = Image.open(
            io.BytesIO(data if png is None else png.data), formats=[one for one in FORMATS if one in Image.OPEN]
        )
    except UnidentifiedImageError as error:  # its message names the buffer, which says nothing
        start = data[:100].lstrip().lower()
        kind = next((name for mark, name in NOT_READ.items() if start.startswith(mark)), None)
        if kind is None and directory(data):
            kind = described(data)
        raise UnidentifiedImageError(
            f"{kind} is not read" if kind else "the bytes are not an image that can be read"
        ) from error
    if max(image.size) > MOST_SIDE:
        image.close()
        raise TooManyPixels(f"{image.width} x {image.height} has a side of more than {MOST_SIDE} pixels")
    if image.width * image.height > limits.max_pixels:
        image.close()
        size = f"{image.width} x {image.height}"
        raise TooManyPixels(f"{size} is over the limit of {limits.max_pixels / 1e6:g} megapixels")
    file = _File(image, image.format or "unknown", white=_white(image))
    if png is not None:
        file.depth, file.white, file.notes = png.depth if png.color else 8, png.white, png.notes
        file.meaning, file.extra, file.is_animated = png.meaning, png.extra, png.is_animated
        file.is_ambiguous = png.is_ambiguous
        if png.profile is not None:
            image.info["icc_profile"] = png.profile
    if file.white is not None:
        file.meaning += f"white {file.white}".encode()
    if image.format == "TIFF":
        tags = directory(data)
        file.meaning += b"signed" * (image.mode == "I" and KIND in tags and tags[KIND].first == 2)
        file.is_negative = tags[PHOTOMETRIC].first == 0 if PHOTOMETRIC in tags else False
        file.meaning += b"negative" * (file.is_negative and bits_of(image) > 8)
    return file


def _white(image: Image.Image) -> float | None:
    """The value that a TIFF says to be white."""
    tags: Any = getattr(image, "tag_v2", {})
    value = next((tags[tag] for tag in WHITE_TAGS if tag in tags), None)
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, int) and value > 0 else None


def _shown(image: Image.Image, notes: list[str]) -> tuple[Image.Image, ColorProfile | None]:
    """What an image shows, upright, in all bits that it has, and the colour profile that it is in.

    Eight bits are RGB, RGBA where anything can be seen through, or CMYK or LAB; others I;16, I or F.
    """
    try:
        profile = profile_of(image)
    except BrokenProfile as error:
        profile = unusable(image)
        notes.append(str(error))
    upright = turn_upright(image)
    if upright.mode in KEPT or upright.mode.startswith("I;16"):
        return upright, profile
    if not upright.has_transparency_data:
        return _in_mode(upright, "RGB"), profile
    clear = _in_mode(upright, "RGBA")
    return clear.convert("RGB") if is_opaque(clear) else clear, profile


def _frame(image: Image.Image) -> tuple[Image.Image, bytes]:
    frame, profile = _shown(image, [])
    return frame, profile.meaning if profile else b""


def _rgb(frame: Image.Image, profile: ColorProfile | None, file: _File) -> Image.Image:
    """What is shown in sRGB of eight bits, on a ground."""
    if frame.mode.startswith(("I", "F")):
        grey = eight_bits(frame, file.white)
        return (ImageChops.invert(grey) if file.is_negative else grey).convert("RGB")
    if frame.mode == "LAB":
        return from_lab(frame)
    if profile is not None and profile.data:
        try:
            frame = to_srgb(frame, profile)
        except BrokenProfile as error:
            file.notes.append(str(error))
    return on_ground(frame) if frame.mode == "RGBA" else _in_mode(frame, "RGB")


def bytes_a_pixel(image: Image.Image) -> int:
    """How much memory decoding takes at its peak, measured for each format: its library's buffers and our steps."""
    library = BYTES_OF_LIBRARY.get(image.format or "", 0)
    if image.info.get("progressive"):  # coefficients of all scans, two bytes each
        library += 2 * len(image.getbands())
    deep = 8 if image.mode.startswith(("I", "F")) else 0
    clear = 8 if image.mode in {"LA", "PA"} else 4 if image.has_transparency_data else 0
    frames = 8 if getattr(image, "is_animated", False) else 0  # the first is held while the others are decoded
    return BYTES_A_PIXEL + library + deep + clear + frames


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converted, without a copy where it has that mode."""
    return image if image.mode == mode else image.convert(mode)


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    orientation = orientation_of(image)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
