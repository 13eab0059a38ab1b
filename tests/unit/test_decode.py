"""Decoding: upright, on white, eight bits, and safe."""

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pgimgsearch.sources.decode import decode, decode_small, register_formats
from pgimgsearch.sources.limits import ImageLimits, TooManyPixels
from tests.conftest import ROOT

LIMITS = ImageLimits(max_pixels=10_000_000)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def asymmetric(width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = (250, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 250, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 250)
    return Image.fromarray(pixels)


# How a camera held that way would have stored the upright image (CIPA DC-008, orientation)
STORED = {
    1: lambda i: i,
    2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
    4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
    6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
    7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
    8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_ends_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = encoded(STORED[orientation](asymmetric()), kind, exif=exif, **options)
    image, facts = decode(stored, LIMITS)
    assert np.array_equal(np.asarray(image), np.asarray(asymmetric()))
    assert (facts.width, facts.height) == (40, 24)


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert decode(encoded(image, "PNG"), LIMITS)[0].getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    assert decode(encoded(palette, "PNG", transparency=0), LIMITS)[0].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16)), 255),
        (Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16)), 128),
        (Image.fromarray(np.full((4, 4), 200, dtype=np.uint8)), 200),
        (Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)), 128),
    ],
    ids=["16 bit white", "16 bit grey", "8 bit", "float in 0..1"],
)
def test_depths_are_scaled_not_clipped(image: Image.Image, expected: int) -> None:
    assert abs(decode(encoded(image, "TIFF"), LIMITS)[0].getpixel((0, 0))[0] - expected) <= 1


def test_equal_pixels_have_equal_digests_whatever_the_file() -> None:
    digests = {decode(encoded(asymmetric(), kind), LIMITS)[1].pixel_hash for kind in ("PNG", "BMP", "TIFF", "PPM")}
    assert len(digests) == 1
    other = asymmetric()
    other.putpixel((0, 0), (249, 0, 0))
    assert decode(encoded(other, "PNG"), LIMITS)[1].pixel_hash not in digests


@pytest.mark.parametrize("orientation", STORED)
def test_a_thumbnail_is_upright_and_small(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = asymmetric(1204, 800)
    image = decode_small(encoded(STORED[orientation](upright), "JPEG", exif=exif, quality=95), 301, LIMITS)
    assert image.size == (301, 200)
    difference = np.asarray(image, int) - np.asarray(upright.resize((301, 200), Image.Resampling.BOX), int)
    assert np.abs(difference).mean() < 2


def test_a_thumbnail_of_a_transparent_drawing_lies_on_white() -> None:
    clear = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    assert decode_small(encoded(clear, "PNG"), 40, LIMITS).getpixel((5, 5)) == (255, 255, 255)


def test_image_files_are_opened_in_one_place() -> None:
    found = [path for path in (ROOT / "pgimgsearch").rglob("*.py") if "Image.open(" in path.read_text()]
    assert found == [ROOT / "pgimgsearch" / "sources" / "decode.py"]


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(TooManyPixels, match="2000 x 2000"):
        decode(encoded(Image.new("1", (2000, 2000)), "PNG"), ImageLimits(3_999_999))
    assert decode(encoded(Image.new("1", (2000, 2000)), "PNG"), ImageLimits(4_000_000))[1].width == 2000


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 600), st.binary(min_size=1, max_size=4), st.booleans())
def test_damaged_files_decode_or_raise_but_never_hang(position: int, patch: bytes, cut: bool) -> None:
    good = encoded(asymmetric(), "JPEG", quality=90)
    position %= len(good)
    damaged = good[:position] + (b"" if cut else patch + good[position + len(patch) :])
    with suppress(Exception):  # any error is fine: it becomes a row of ingest_failure
        assert decode(damaged, LIMITS)[0].mode == "RGB"


def test_heic_avif_and_mpo_are_known() -> None:
    assert {".heic", ".avif", ".mpo", ".jpg", ".jp2", ".tif", ".webp"} <= register_formats()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "group3", "group4", "jpeg"])
def test_what_libtiff_says_is_in_the_reason_and_not_on_the_terminal(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own lines reach the file descriptor, past Python."""
    noise = Image.effect_noise((120, 120), 60)
    whole = encoded(noise.convert("1" if compression.startswith("group") else "RGB"), "TIFF", compression=compression)
    reasons = []
    for seed in range(40):
        damage = np.random.default_rng(seed)
        data = np.frombuffer(whole, np.uint8).copy()
        data[damage.integers(150, len(data), 30)] = damage.integers(0, 256, 30)
        try:
            decode(data.tobytes(), LIMITS)
        except Exception as error:  # as where files are read
            reasons.append(str(error))
    assert capfd.readouterr().err == ""
    if compression in {"tiff_lzw", "tiff_adobe_deflate", "packbits"}:
        assert any(reason.startswith("decoder error -2: ") and len(reason) > 30 for reason in reasons), reasons
