"""Edits of an image, of other strengths than those that thresholds are calibrated with."""

import io
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps


def recoded(image: Image.Image, kind: str, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, kind, quality=quality)
    return Image.open(out).convert("RGB")


def stamped(image: Image.Image) -> Image.Image:
    copy = image.copy()
    ImageDraw.Draw(copy).rectangle((0, 0, image.width // 6, image.height // 6), fill="yellow")
    return copy


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resize 0.7": lambda image: image.resize((image.width * 7 // 10, image.height * 7 // 10)),
    "resize 0.35": lambda image: image.resize((image.width * 35 // 100, image.height * 35 // 100)),
    "JPEG 45": lambda image: recoded(image, "JPEG", 45),
    "WebP 30": lambda image: recoded(image, "WEBP", 30),
    "crop 95%": lambda image: ImageOps.crop(image, min(image.size) // 40),
    "frame 3%": lambda image: ImageOps.expand(image, min(image.size) // 30, "navy"),
    "stamp": stamped,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "pale": lambda image: ImageEnhance.Color(image).enhance(0.3),
    "blur 1.5%": lambda image: image.filter(ImageFilter.GaussianBlur(min(image.size) * 0.015)),
}
