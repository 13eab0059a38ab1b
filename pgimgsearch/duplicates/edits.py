"""Edited copies of an image, as people and platforms make them: what a threshold is measured with."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Resampling, Transpose

from pgimgsearch.sources.decode import decode

Make = Callable[[Image.Image, Random], Image.Image]


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit: its kind, how strong it is, and what makes it of an RGB image."""

    kind: str
    strength: str
    make: Make

    @property
    def name(self) -> str:
        """Kind and strength."""
        return f"{self.kind} {self.strength}"


def resized(share: float) -> Make:
    """Smaller, to a share of each side."""
    return lambda image, _: image.resize(_scaled(image.size, share), Resampling.BICUBIC)


def squeezed(image: Image.Image, _: Random) -> Image.Image:
    """Another aspect: to a square."""
    side = min(image.size)
    return image.resize((side, side), Resampling.BICUBIC)


def recoded(kind: str, quality: int) -> Make:
    """Through a lossy file and back."""

    def make(image: Image.Image, _: Random) -> Image.Image:
        out = io.BytesIO()
        image.save(out, kind, quality=quality)
        return decode(out.getvalue())[0]

    return make


def cropped(share: float) -> Make:
    """A part of so much of each side, from anywhere."""

    def make(image: Image.Image, random: Random) -> Image.Image:
        width, height = _scaled(image.size, share)
        left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
        return image.crop((left, top, left + width, top + height))

    return make


def bordered(share: float) -> Make:
    """A frame of one colour, its width a share of the shorter side."""
    return lambda image, random: ImageOps.expand(
        image, max(1, round(min(image.size) * share)), random.choice(["white", "black", "grey"])
    )


def captioned(image: Image.Image, random: Random) -> Image.Image:
    """A line of text on a bar at the lower edge."""
    copy, height = image.copy(), max(10, image.height // 8)
    draw = ImageDraw.Draw(copy)
    draw.rectangle((0, image.height - height, image.width, image.height), fill=random.choice(["black", "white"]))
    draw.text((image.width // 20, image.height - height), "SALE -50% today", fill="red", font_size=height * 0.8)
    return copy


def stickered(share: float) -> Make:
    """A disc in one colour over a share of the shorter side, anywhere."""

    def make(image: Image.Image, random: Random) -> Image.Image:
        copy, side = image.copy(), max(2, round(min(image.size) * share))
        left, top = random.randint(0, image.width - side), random.randint(0, image.height - side)
        colour = tuple(random.randint(0, 255) for _ in range(3))
        ImageDraw.Draw(copy).ellipse((left, top, left + side, top + side), fill=colour)
        return copy

    return make


def recoloured(enhancer: Callable[[Image.Image], ImageEnhance._Enhance], factor: float) -> Make:
    """Brightness, contrast or colour times a factor; colour times 0 is grey."""
    return lambda image, _: enhancer(image).enhance(factor)


def blurred(share: float) -> Make:
    """A Gaussian blur, its radius a share of the shorter side."""
    return lambda image, _: image.filter(ImageFilter.GaussianBlur(min(image.size) * share))


def transposed(*how: Transpose) -> Make:
    """Mirrored or rotated by a quarter, one of ``how``."""
    return lambda image, random: image.transpose(random.choice(how))


def seen_again(shift: float, degrees: float) -> Make:
    """The same scene a moment later: the camera moved and turned a little, in other light."""

    def make(image: Image.Image, random: Random) -> Image.Image:
        rotated = image.rotate(random.uniform(-degrees, degrees), Resampling.BICUBIC, fillcolor=_mean(image))
        part = cropped(1 - shift)(rotated, random)
        lit = ImageEnhance.Brightness(part).enhance(random.uniform(0.8, 1.25))
        return ImageEnhance.Contrast(lit).enhance(random.uniform(0.85, 1.15))

    return make


# The same image: what the threshold `near` is measured with.
NEAR = (
    Edit("resize", "to 1/2", resized(0.5)), Edit("resize", "to 1/4", resized(0.25)), Edit("resize", "square", squeezed),
    Edit("recode", "JPEG 60", recoded("JPEG", 60)), Edit("recode", "JPEG 20", recoded("JPEG", 20)),
    Edit("recode", "WebP 40", recoded("WEBP", 40)),
    Edit("crop", "90%", cropped(0.9)), Edit("crop", "75%", cropped(0.75)),
    Edit("border", "5%", bordered(0.05)), Edit("border", "12%", bordered(0.12)),
    Edit("overlay", "caption", captioned), Edit("overlay", "sticker 20%", stickered(0.2)),
    Edit("colour", "brightness 1.3", recoloured(ImageEnhance.Brightness, 1.3)),
    Edit("colour", "contrast 0.7", recoloured(ImageEnhance.Contrast, 0.7)),
    Edit("colour", "grey", recoloured(ImageEnhance.Color, 0)),
    Edit("blur", "1%", blurred(0.01)), Edit("blur", "2%", blurred(0.02)),
)  # fmt: skip
# The same scene: what `similar` is measured with.
SIMILAR = (
    Edit("scene", "moved 15%, rotated 5", seen_again(0.15, 5)),
    Edit("scene", "moved 30%, rotated 10", seen_again(0.3, 10)),
    Edit("crop", "60%", cropped(0.6)), Edit("crop", "45%", cropped(0.45)),
)  # fmt: skip
# Reported, but no part of a threshold: found with --transformed.
TURNED = (
    Edit("mirror", "left to right", transposed(Transpose.FLIP_LEFT_RIGHT)),
    Edit("rotate", "90, 180 or 270", transposed(Transpose.ROTATE_90, Transpose.ROTATE_180, Transpose.ROTATE_270)),
)

ALL = NEAR + SIMILAR + TURNED


def _scaled(size: tuple[int, int], share: float) -> tuple[int, int]:
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _mean(image: Image.Image) -> tuple[int, ...]:
    pixel = image.resize((1, 1), Resampling.BOX).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel
