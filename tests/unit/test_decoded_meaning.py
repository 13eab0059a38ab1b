"""Images as what they mean: colours by their profile, depth by its bits, drawings that stay visible, and odd files read."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin

from pgimgsearch.sources.decode import decode, decode_pixels, decode_small
from tests.support.icc import SPACES, grey_profile, rgb_profile
from tests.support.images import photo_image

SCENE = photo_image(seed=4, size=(160, 120))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int64)


def in_space(image: Image.Image, profile: bytes) -> Image.Image:
    """An image of sRGB as pixels of another space."""
    converted = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode=image.mode,
    )  # fmt: skip
    assert converted is not None
    return converted


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_the_same_colours_in_any_space_are_the_same(space: str, kind: str) -> None:
    """But for the eight bits of both: wide spaces have coarser steps."""
    profile = rgb_profile(space)
    options = (
        {"quality": 100}
        | ({"subsampling": 0} if kind == "JPEG" else {})
        | ({"lossless": True} if kind == "WEBP" else {})
    )
    data = saved(in_space(SCENE, profile), kind, icc_profile=profile, **options)
    difference = np.abs(values(decode(data)[0]) - values(SCENE))
    assert difference.mean() < (3 if kind == "JPEG" else 1.5)
    if space == "srgb" and kind != "JPEG":
        assert difference.max() <= 1
    assert np.abs(values(decode_small(data, 1000)) - values(decode_pixels(data))).max() <= 1


def test_transparency_survives_a_conversion() -> None:
    clear = SCENE.convert("RGBA")
    ImageDraw.Draw(clear).rectangle((0, 0, 60, 60), fill=(0, 0, 0, 0))
    profile = rgb_profile("adobe")
    wide = in_space(SCENE, profile).convert("RGBA")
    wide.putalpha(clear.getchannel("A"))
    found = values(decode(saved(wide, "PNG", icc_profile=profile))[0])
    assert (found[:60, :60] == 255).all()
    assert np.abs(found[70:] - values(SCENE)[70:]).mean() < 1.5


def test_grey_and_cmyk_have_profiles_too() -> None:
    grey = SCENE.convert("L")
    dark = decode(saved(grey, "PNG", icc_profile=grey_profile(1.0)))[0]  # linear light, as sRGB much brighter
    assert values(dark).mean() > values(grey).mean() + 30
    plain = decode(saved(SCENE.convert("CMYK"), "TIFF"))[0]
    assert np.abs(values(plain) - values(SCENE.convert("CMYK").convert("RGB"))).max() == 0


@pytest.mark.parametrize(
    "profile",
    [b"x" * 40, b"x" * 5000, rgb_profile("p3")[:150], grey_profile(2.2), b"\0" * 128 + b"\xff" * 4,
     rgb_profile("p3")[:16] + b"CMYK" + rgb_profile("p3")[20:], bytes(5 << 20)],
)  # fmt: skip
def test_a_profile_that_says_nothing_of_the_image_is_ignored_and_told(profile: bytes) -> None:
    found, facts = decode(saved(SCENE, "TIFF", icc_profile=profile))
    assert np.array_equal(values(found), values(SCENE))
    assert len(facts.notes) == 1
    assert "profile" in facts.notes[0]


@pytest.mark.parametrize("sides", [3, 5, 8])
def test_white_drawings_are_seen_and_dark_ones_lie_on_white(sides: int) -> None:
    for color, ground in (("white", 0), ("black", 255), ((200, 30, 30), 255)):
        drawing = Image.new("RGBA", (100, 100), (255, 255, 255, 0))
        ImageDraw.Draw(drawing).regular_polygon((50, 50, 40), sides, fill=color)
        for found in (decode(saved(drawing, "PNG"))[0], decode_small(saved(drawing, "PNG"), 60)):
            assert found.getpixel((1, 1)) == (ground,) * 3
            assert found.getpixel((found.width // 2, found.height // 2)) != (ground,) * 3


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_any_depth_in_two_bytes_looks_the_same(bits: int, kind: str) -> None:
    grey = values(SCENE.convert("L"))
    grey[0, 0] = 255
    deep = np.rint(grey / 255 * (2**bits - 1)).astype(np.uint16)
    found = values(decode(saved(Image.fromarray(deep), kind))[0])[..., 0]
    assert np.abs(found - grey).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 80.0), (-5.0, 5.0), (1e6, 2e6), (0.0, 255.0)])
@pytest.mark.parametrize("odd", [None, np.inf, -np.inf, np.nan, 1e9])
def test_floating_point_is_seen_whatever_its_range_and_outliers(low: float, high: float, odd: float | None) -> None:
    grey = values(SCENE.convert("L")).astype(np.float64)
    spread = (grey - grey.min()) / (grey.max() - grey.min())
    floats = (low + spread * (high - low)).astype(np.float32)
    if odd is not None:
        floats[:2, :3] = odd
    found = values(decode(saved(Image.fromarray(floats), "TIFF"))[0])[..., 0]
    assert np.corrcoef(found[3:].ravel(), spread[3:].ravel())[0, 1] > 0.99
    assert found.max() - found.min() > 200


def chunk(kind: bytes, data: bytes, *, wrong: bool = False) -> bytes:
    checksum = zlib.crc32(kind + data) ^ wrong
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", checksum)


@pytest.mark.parametrize(
    ("extra", "note"),
    [
        (chunk(b"tEXt", b"a\0b", wrong=True), "checksum"),
        (chunk(b"gAMA", b"\0\0\xb1\x8f", wrong=True), "checksum"),
        (chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)), "long text"),
        (chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 300_000_000)), "long text"),
        (chunk(b"tEXt", b"workflow\0" + b"x" * 2_000_000), "long text"),
        (chunk(b"iCCP", b"display\0\0" + zlib.compress(rgb_profile("p3") + bytes(3_000_000))), None),
        (chunk(b"iCCP", b"display\0\0" + zlib.compress(bytes(60_000_000))), "profile"),
        (chunk(b"tEXt", b"Comment\0short"), None),
    ],
)
def test_a_png_with_odd_chunks_is_read(extra: bytes, note: str | None) -> None:
    whole = saved(SCENE, "PNG")
    found, facts = decode(whole[:33] + extra + whole[33:])
    assert found.size == SCENE.size
    assert len(facts.notes) == (note is not None)
    assert note is None or note in facts.notes[0]
    if note is None or "profile" not in note:
        assert (facts.pixel_hash == decode(whole)[1].pixel_hash) == (b"iCCP" not in extra)


def test_a_png_that_is_broken_in_what_is_shown_is_not_read() -> None:
    whole = saved(SCENE, "PNG")
    place = whole.index(b"IDAT") + 20
    with pytest.raises((OSError, SyntaxError)):
        decode(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_without_its_end_mark_is_read_and_one_without_pixels_is_not(options: dict[str, Any]) -> None:
    whole = saved(SCENE, "JPEG", quality=90, **options)
    found, facts = decode(whole[:-2])
    assert np.array_equal(values(found), values(decode(whole)[0]))
    assert facts.notes == ("it ends without its end mark",)
    with pytest.raises(OSError, match="truncated"):
        decode(whole[: len(whole) * 2 // 3])


def test_tiffs_that_are_not_read_are_named() -> None:
    for samples, bits, kind, said in (
        (3, 32, 3, "3 channels of 32 bits in floating point"),
        (5, 8, 1, "5 channels of 8 bits"),
    ):
        tags = [(256, 4, 8), (257, 4, 8), (258, 3, bits), (262, 3, 2), (273, 4, 8), (277, 3, samples), (278, 4, 8),
                (279, 4, 64 * samples * bits // 8), (339, 3, kind)]  # fmt: skip
        entries = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
        data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(5000)
        with pytest.raises(OSError, match=said):
            decode(data)


def test_the_text_of_a_png_is_no_bomb() -> None:
    """Nor is what a hundred of them unpack to."""
    info = PngImagePlugin.PngInfo()
    for number in range(100):
        info.add_itxt(f"k{number}", "x" * 900_000, zip=True)
    assert decode(saved(SCENE, "PNG", pnginfo=info))[0].size == SCENE.size
