"""From bytes to an upright RGB picture, whatever Pillow reads plus HEIC and AVIF."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.Image import Transpose

# EXIF tag 0x0112 (CIPA DC-008): what turns the stored pixels upright
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
BYTES_A_PIXEL = 16  # as it is decoded, turned, converted and hashed: four of Pillow's pixels
ON_ITS_SIDE = {5, 6, 7, 8}  # orientations that swap width and height
PROGRAMS = {"EPS", "WMF"}  # read by running what the file says, in Ghostscript or in the system
NOT_PICTURES = {"MPEG", "HDF5", "GRIB", "BUFR"}  # Pillow recognises these but cannot read them


class TooManyPixels(ValueError):  # noqa: N818  (its name is what ingest_failure stores)
    """The picture is larger than the limit; it was not decoded."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What is stored of a picture; sizes are of the upright pixels.

    Of one that came at reduced scale, ``pixel_sha256`` stands for the bytes of the file: the pixels are not known.
    """

    pixel_sha256: bytes
    width: int
    height: int
    format: str


@cache
def register_formats() -> frozenset[str]:
    """Teach Pillow HEIC and return the file extensions (with dot, lower case) of all it can read."""
    import pillow_heif  # 0.1 s

    pillow_heif.register_heif_opener()
    Image.init()
    readable = (Image.OPEN.keys() | {"MPO"}) - NOT_PICTURES  # the JPEG reader opens MPO
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in readable)


def decode(
    data: bytes, max_pixels: int, least: int | None = None, take: Callable[[int], None] = lambda _: None
) -> tuple[Image.Image, PictureFacts]:
    """Decode the first frame into an upright RGB picture, transparency laid on white.

    With ``least`` a JPEG comes at a half, a quarter or an eighth, as long as no side has fewer pixels than that.
    ``take`` is told the bytes that it takes, before they are taken.
    Raises what Pillow raises for broken bytes, and TooManyPixels before anything large is decoded.
    """
    try:
        return _decode(data, max_pixels, least, take)
    except Image.DecompressionBombError as error:  # found by Pillow, perhaps inside a container
        raise TooManyPixels(str(error).removesuffix(", could be decompression bomb DOS attack.")) from error


def limit_pixels(max_pixels: int) -> None:
    """Let Pillow itself refuse more, also inside containers; the setting is Pillow's, for the whole process."""
    Image.MAX_IMAGE_PIXELS = max_pixels // 2  # it refuses twice this


def _decode(
    data: bytes, max_pixels: int, least: int | None, take: Callable[[int], None]
) -> tuple[Image.Image, PictureFacts]:
    with _open(data) as image:
        if image.width * image.height > max_pixels:
            raise TooManyPixels(f"{image.width} x {image.height} is over the limit of {max_pixels / 1e6:g} megapixels")
        kind, size = image.format or "unknown", image.size
        if least is not None:
            image.draft(None, (least, least))
        reduced = image.size != size
        take(image.width * image.height * BYTES_A_PIXEL)
        image.load()
        upright, on_its_side = turn_upright(image), orientation_of(image) in ON_ITS_SIDE
        clear = upright.has_transparency_data and not upright.mode.startswith(("I", "F"))
        full = upright.convert("RGBA") if clear else to_rgb(upright)
    rgb = on_white(full) if clear else full
    if reduced:
        width, height = size[::-1] if on_its_side else size
        return rgb, PictureFacts(hashlib.sha256(b"bytes " + data).digest(), width, height, kind)
    digest = hashlib.sha256(f"{full.mode} {full.width} {full.height} ".encode())
    digest.update(full.tobytes())
    return rgb, PictureFacts(digest.digest(), rgb.width, rgb.height, kind)


def _open(data: bytes) -> Image.Image:
    Image.init()
    try:
        return Image.open(io.BytesIO(data), formats=sorted(Image.OPEN.keys() - PROGRAMS))
    except UnidentifiedImageError as error:  # its message names the buffer, which says nothing
        raise UnidentifiedImageError("the bytes are no picture that can be read") from error


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    orientation = orientation_of(image)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def orientation_of(image: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8, or whatever the file says it is; unreadable EXIF counts as none."""
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
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 or 32 bits to 8: by their range where it is known, else by what the picture uses."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        scaled = values * 255
    elif low >= 0 and high <= 255 and image.mode in {"I", "F"}:
        scaled = values
    elif low >= 0 and high <= 65535:
        scaled = values / 257
    else:
        scaled = (values - low) / max(high - low, 1e-9) * 255
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def on_white(image: Image.Image) -> Image.Image:
    """Lay an RGBA picture on white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
