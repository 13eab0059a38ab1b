"""Copies of a picture by size and compression are the same; whatever a person would miss is not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from pgimgsearch.duplicates.same_picture import difference
from tests.support.images import photo_image


def scene(seed: int = 3) -> Image.Image:
    """A smooth picture with edges and grain, as cameras make them."""
    image = photo_image(seed, (1200, 900))
    draw, rng = ImageDraw.Draw(image), np.random.default_rng(seed)
    for _ in range(40):
        x, y, side = (int(one) for one in rng.integers(20, 800, 3))
        draw.ellipse((x, y, x + side // 4, y + side // 4), fill=tuple(int(one) for one in rng.integers(0, 256, 3)))
    image = image.filter(ImageFilter.GaussianBlur(1.5))
    grain = rng.normal(0, 4, (900, 1200, 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def page(number: str) -> Image.Image:
    """A page of lines, with a number on it."""
    image, rng = Image.new("RGB", (1240, 1754), "white"), np.random.default_rng(1)
    draw = ImageDraw.Draw(image)
    for top in range(100, 1600, 40):
        left = 100
        while left < 1100:
            width = int(rng.integers(15, 80))
            draw.rectangle((left, top, min(left + width, 1140), top + 14), fill="black")
            left += width + 14
    draw.text((900, 60), number, fill="black")
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


@pytest.mark.parametrize(
    "copied",
    [
        lambda image: image,
        lambda image: jpeg(image, 85),
        lambda image: jpeg(image, 60),
        lambda image: resized(image, 0.6),
        lambda image: jpeg(resized(image, 0.6), 80),
    ],
)
def test_copies_are_the_same(copied: Callable[[Image.Image], Image.Image]) -> None:
    original = scene()
    assert difference(copied(original), original) is None


@pytest.mark.parametrize("quality", [95, 80, 60])
def test_a_page_that_was_saved_again_is_the_same(quality: int) -> None:
    assert difference(jpeg(page("Invoice 1001"), quality), page("Invoice 1001")) is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (lambda image: ImageOps.expand(image, (40, 30), "white"), "differs in places"),
        (lambda image: ImageOps.expand(image, 80, "white"), "other proportions"),
        (lambda image: ImageEnhance.Color(image).enhance(0), "differs in places"),
        (lambda image: ImageEnhance.Brightness(image).enhance(1.15), "differs in places"),
        (lambda image: image.filter(ImageFilter.GaussianBlur(3)), "differs in places"),
        (lambda image: image.crop((8, 6, image.width, image.height)), "differs in places"),
        (lambda image: image.crop((200, 0, image.width, image.height)), "other proportions"),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "differs in places"),
        (lambda image: resized(image, 0.4), "too small to tell"),
        (lambda image: scene(4).resize(image.size), "differs in places"),
    ],
)
def test_what_a_person_would_miss_is_another(changed: Callable[[Image.Image], Image.Image], why: str) -> None:
    original = scene()
    told = difference(original, changed(original))
    assert told is not None
    assert why in told


def test_pages_of_one_form_are_others() -> None:
    """Which a model and a hash find alike."""
    for number in ("Invoice 1002", "Invoice 1008", "Invoice 7001"):
        assert difference(page("Invoice 1001"), page(number)) == "it differs in places"
        assert difference(jpeg(page("Invoice 1001"), 80), jpeg(page(number), 80)) == "it differs in places"


def test_an_original_does_not_go_for_an_enlarged_copy() -> None:
    original = scene()
    assert difference(original, resized(resized(original, 0.6), 1 / 0.6)) is not None
    enlarged = resized(original, 2)
    assert difference(original, enlarged) == "its keeper is an enlarged copy"
    assert difference(resized(original, 0.7), original) is None
    assert difference(original, resized(original, 0.7)) == "it has more pixels than its keeper"
