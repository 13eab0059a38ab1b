"""A copy in another size, compression, contrast or in grey shows the same pixels; all else does not."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from pgimgsearch.duplicates.pixel_copies import is_pixel_copy, reduced
from tests.support.images import photo_image


def alike(one: Image.Image, other: Image.Image) -> bool:
    found = is_pixel_copy(reduced(one), reduced(other))
    assert found == is_pixel_copy(reduced(other), reduced(one))
    return found


def through(image: Image.Image, kind: str, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, kind, quality=quality)
    return Image.open(out).convert("RGB")


@given(
    seed=st.integers(0, 50),
    scale=st.floats(0.3, 2),
    kind=st.sampled_from(["JPEG", "WEBP"]),
    quality=st.integers(50, 95),
    grey=st.none() | st.tuples(*[st.floats(0.1, 0.8)] * 3),
    contrast=st.floats(0.8, 1),
)
def test_size_compression_contrast_and_grey_change_nothing(
    seed: int, scale: float, kind: str, quality: int, grey: tuple[float, float, float] | None, contrast: float
) -> None:
    original = photo_image(seed, (240, 180))
    copy = original.resize((round(240 * scale), round(180 * scale)), Image.Resampling.BICUBIC)
    if grey is not None:
        shades = np.asarray(copy, np.float64) @ (np.array(grey) / sum(grey))
        copy = Image.fromarray(shades.astype(np.uint8)).convert("RGB")
    assert alike(original, through(ImageEnhance.Contrast(copy).enhance(contrast), kind, quality))


@given(seed=st.integers(0, 50), other=st.integers(51, 100))
def test_other_pictures_are_none_in_grey_neither(seed: int, other: int) -> None:
    one, two = photo_image(seed, (240, 180)), photo_image(other, (240, 180))
    assert not alike(one, two)
    assert not alike(one, two.convert("L").convert("RGB"))


@pytest.mark.parametrize("change", [
    lambda image: ImageOps.crop(image, 8),
    lambda image: ImageOps.expand(image, 8, "white"),
    lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    lambda image: image.rotate(2),
    lambda image: Image.merge("RGB", image.split()[::-1]),
    ImageOps.invert,
    lambda image: ImageOps.invert(image.convert("L")).convert("RGB"),
    lambda image: Image.new("RGB", image.size, "grey"),
])  # fmt: skip
def test_edits_are_none(change: object) -> None:
    original = photo_image(3, (240, 180))
    assert not alike(original, change(original))  # type: ignore[operator]


@pytest.mark.parametrize("size", [22, 28, 36])
@pytest.mark.parametrize("other", ["7,893.66", "1,204.58", "388.10"])
def test_another_amount_on_an_invoice_is_none(size: int, other: str) -> None:
    def invoice(amount: str) -> Image.Image:
        image = Image.new("RGB", (1240, 1754), "white")
        draw = ImageDraw.Draw(image)
        for line in range(30):
            draw.text((100, 200 + 40 * line), f"item {line}: delivered as agreed", fill="black", font_size=size)
        draw.text((800, 1500), amount, fill="black", font_size=size)
        return image

    assert not alike(invoice("1,204.50"), invoice(other))
    assert alike(invoice("1,204.50"), through(invoice("1,204.50"), "JPEG", 60))


def test_an_image_without_contrast_or_of_few_pixels_is_no_copy() -> None:
    assert not alike(Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "white"))
    tiny = photo_image(1, (12, 12))
    assert not alike(tiny, tiny)
