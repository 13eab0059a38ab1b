"""What is identical: equal in everything that is shown, in all frames, bits and colours, and in nothing less."""

import io
import itertools
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pgimgsearch.sources.decode import decode, decode_pixels
from pgimgsearch.sources.identity import MOST_FRAMES
from tests.support.icc import rgb_profile

RNG = np.random.default_rng(5)
NOISE = Image.fromarray(RNG.integers(0, 256, (24, 40, 3), np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def shown(data: bytes) -> bytes | None:
    return decode(data)[1].pixel_hash


def deep_png(values: np.ndarray) -> bytes:
    """16 bits a channel, as Pillow does not write it: grey, RGB or RGBA."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    head = struct.pack("!IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_later_frames_count(kind: str) -> None:
    """Documents that share a cover sheet, animations that begin alike."""
    options = {"save_all": True} | ({"lossless": True} if kind == "WEBP" else {})
    pages = [NOISE, NOISE.rotate(180), NOISE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    one, same, other, longer = (
        saved(pages[0], kind, append_images=more, **options)
        for more in ([pages[1]], [pages[1]], [pages[2]], [pages[1], pages[2]])
    )
    assert shown(one) == shown(same)
    assert len({shown(one), shown(other), shown(longer), shown(saved(pages[0], kind))}) == 4


def test_how_long_a_frame_is_shown_counts() -> None:
    quick, slow = (
        saved(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(180)], duration=time) for time in (20, 900)
    )
    assert shown(quick) != shown(slow)


def test_what_is_too_much_to_look_at_is_identical_by_its_bytes_alone() -> None:
    """10,000 frames of an animation, and 300 pages that hold more pixels than are decoded."""
    frames = [Image.new("L", (8, 8), number % 256) for number in range(MOST_FRAMES + 2)]
    assert shown(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])) is None
    assert shown(saved(frames[0], "GIF", save_all=True, append_images=frames[1:50])) is not None
    page = Image.new("1", (1240, 1754), 1)
    pages = [page] * 299
    assert shown(saved(page, "TIFF", save_all=True, append_images=pages, compression="group4")) is None
    assert shown(saved(page, "TIFF", save_all=True, append_images=pages[:9], compression="group4")) is not None


@pytest.mark.parametrize("channels", [3, 4])
def test_bits_that_are_not_decoded_are_not_forgotten(channels: int) -> None:
    """16-bit RGB that differs in the low byte: decoded it is the same, but nobody can say that it is identical."""
    values = RNG.integers(0, 65536, (6, 8, channels)).astype(np.uint16)
    assert shown(deep_png(values)) is None
    assert shown(deep_png(values ^ 1)) is None


def test_grey_of_16_bits_has_all_of_them() -> None:
    values = RNG.integers(0, 60000, (6, 8)).astype(np.uint16)
    images = deep_png(values), saved(Image.fromarray(values), "TIFF"), saved(Image.fromarray(values), "PNG")
    assert len({shown(data) for data in images}) == 1
    assert shown(deep_png(values ^ 1)) != shown(images[0])
    assert shown(deep_png(values * np.uint16(1) // 257)) != shown(images[0])
    floats = values.astype(np.float32)
    assert len({shown(saved(Image.fromarray(floats + n), "TIFF")) for n in (0, np.float32(0.01))}) == 2


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_a_channel_that_hides_nothing_changes_nothing(mode: str) -> None:
    """As screenshots and exports have it; and the same pixels by another way of writing them."""
    image = NOISE.convert(mode)
    forms = [saved(image, "PNG"), saved(image.convert("RGBA"), "PNG"), saved(image.convert("RGB"), "PNG"),
             saved(image.convert("RGB"), "BMP"), saved(image.convert("RGBA"), "WEBP", lossless=True)]  # fmt: skip
    if mode == "P":
        forms.append(saved(image, "PNG", transparency=len(image.getpalette() or []) // 3))
    assert len({shown(data) for data in forms}) == 1
    hidden = image.convert("RGBA")
    hidden.putpixel((0, 0), (*hidden.getpixel((0, 0))[:3], 254))  # type: ignore[index]
    assert shown(saved(hidden, "PNG")) not in {shown(data) for data in forms}


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from(["RGB", "RGBA", "L"]))
def test_any_pixel_that_differs_counts(width: int, height: int, seed: int, mode: str) -> None:
    rng = np.random.default_rng(seed)
    channels = len(mode)
    values = rng.integers(0, 256, (height, width, channels), np.uint8)
    image = Image.fromarray(values if channels > 1 else values[..., 0])
    place = tuple(rng.integers(0, values.shape))
    other = values.copy()
    other[place] ^= 1 << int(rng.integers(8))
    changed = Image.fromarray(other if channels > 1 else other[..., 0])
    assert shown(saved(image, "PNG")) == shown(saved(image, "TIFF"))
    assert shown(saved(changed, "PNG")) != shown(saved(image, "PNG"))


def test_pixels_in_another_colour_space_are_others() -> None:
    """By what the profile does, not by what it is called; sRGB is what is meant without one."""
    by_space = {space: shown(saved(NOISE, "PNG", icc_profile=rgb_profile(space)))
                for space in ("srgb", "p3", "adobe", "prophoto")}  # fmt: skip
    assert by_space["srgb"] == shown(saved(NOISE, "PNG"))
    assert len(set(by_space.values())) == 4
    assert shown(saved(NOISE, "PNG", icc_profile=rgb_profile("p3", "of another program"))) == by_space["p3"]
    assert shown(saved(NOISE, "TIFF", icc_profile=rgb_profile("p3"))) == by_space["p3"]


def test_layers_are_not_looked_at(data: Path) -> None:
    """So a file that has some is identical by its bytes alone: what it hides would be lost."""
    head = struct.pack("!4sH6xHIIHH", b"8BPS", 1, 3, 1, 1, 8, 3)
    flat = head + bytes(4) * 3 + b"\0\0" + bytes([10, 20, 30])
    assert shown(flat) == shown(saved(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG"))
    layered, facts = decode((data / "odd" / "pillow-tests__negative_layer_count.psd").read_bytes())
    assert (facts.format, facts.pixel_hash, layered.mode) == ("PSD", None, "RGB")


def test_all_differ() -> None:
    """A size of other proportions has other pixels, even where all are of one colour."""
    sizes = list(itertools.product((1, 2, 3, 4, 6, 12), repeat=2))
    hashes = {shown(saved(Image.new("RGB", size, "red"), "PNG")) for size in sizes}
    assert len(hashes) == len(sizes)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16"])
@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_the_first_frame_is_embedded_wherever_it_is_decoded(kind: str, mode: str) -> None:
    """However the others are looked at: of their own size, and in their own colours."""

    def page(value: int) -> Image.Image:
        if mode == "I;16":
            return Image.fromarray(np.full((20, 30), value * 257, np.uint16))
        return Image.new("L", (30, 20), value).convert(mode)

    try:
        data = saved(page(250), kind, save_all=True, append_images=[page(20)], quality=95)
    except (OSError, ValueError, KeyError):
        pytest.skip(f"Pillow writes no {mode} in {kind}")
    image, facts = decode(data)
    assert np.abs(np.asarray(image, int) - np.asarray(decode_pixels(data), int)).max() <= 1
    assert np.asarray(image).mean() > 240
    assert (facts.width, facts.height) == (30, 20)
    assert facts.about.get("frames", 1) == 2 or mode == "I;16"  # of which some formats write one alone


@pytest.mark.skipif(sys.platform != "linux", reason="no other system bounds the memory of a process")
def test_later_frames_of_any_size_are_bounded() -> None:
    """A picture behind a small one: of what it takes more than the first asks for, nothing is known."""
    data = saved(NOISE, "MPO", save_all=True, append_images=[Image.new("RGB", (9000, 9000), "blue")])
    image, facts = decode(data)
    assert (image.size, facts.pixel_hash, facts.about["frames"]) == (NOISE.size, None, 2)
    assert shown(saved(NOISE, "MPO", save_all=True, append_images=[Image.new("RGB", (900, 900), "blue")])) is not None


def test_what_changes_how_a_profile_is_read_counts() -> None:
    """Its class and version, tables of one way, and gamma and white level of a PNG."""
    profile = rgb_profile("p3")
    link = profile[:12] + b"link" + profile[16:]
    newer = profile[:8] + b"\x09" + profile[9:]
    hashes = {shown(saved(NOISE, "PNG", icc_profile=one)) for one in (profile, link, newer)}
    assert len(hashes) == 3
    srgb = rgb_profile("srgb")
    number = struct.unpack_from("!I", srgb, 128)[0]
    table = struct.pack("!I", number + 1) + srgb[132 : 132 + 12 * number]
    moved = b"".join(
        struct.pack("!4sII", name, place + 12, size) for name, place, size in struct.iter_unpack("!4sII", table[4:])
    )
    extra = struct.pack("!4sII", b"A2B1", len(srgb) + 12, 40)
    tabled = srgb[:128] + struct.pack("!I", number + 1) + moved + extra + srgb[132 + 12 * number :] + bytes(40)
    assert shown(saved(NOISE, "PNG", icc_profile=tabled)) != shown(saved(NOISE, "PNG"))
    whole = saved(NOISE, "PNG")
    for kind, content in ((b"cICP", b"\x09\x10\x00\x01"), (b"gAMA", b"\x00\x01\x86\xa0")):
        chunk = struct.pack("!I", len(content)) + kind + content + struct.pack("!I", zlib.crc32(kind + content))
        assert shown(whole[:33] + chunk + whole[33:]) != shown(whole)


def tiff(values: np.ndarray, *, white: int, kind: int = 1) -> bytes:
    """Grey pixels of more than eight bits; ``white`` is 0 where the largest value is black, ``kind`` 3 for floats."""
    data = values.tobytes()
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, 8 * values.itemsize), (259, 1), (262, 1 - white), (273, 134),
            (277, 1), (278, values.shape[0]), (279, len(data)), (339, kind)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize("form", ["<u2", "<f4"])
def test_a_negative_is_no_copy_and_is_seen_as_it_is_meant(form: str) -> None:
    values = np.linspace(0, 1 if form == "<f4" else 60000, 64 * 64).reshape(64, 64).astype(form)
    plain, negative = (decode(tiff(values, white=white, kind=3 if form == "<f4" else 1)) for white in (0, 1))
    assert plain[1].pixel_hash != negative[1].pixel_hash
    assert np.array_equal(255 - np.asarray(plain[0]), np.asarray(negative[0]))


def png(*chunks: tuple[bytes, bytes], image: Image.Image = NOISE, behind: bytes = b"") -> bytes:
    data = saved(image, "PNG")
    made = [
        struct.pack("!I", len(one)) + kind + one + struct.pack("!I", zlib.crc32(kind + one)) for kind, one in chunks
    ]
    return data[:33] + b"".join(made) + data[33:] + behind


def exif_segment(exif: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack("!H", len(exif) + 8) + b"Exif\0\0" + exif


def with_exif(exif: bytes) -> bytes:
    data, parts = saved(NOISE, "JPEG"), [exif[start : start + 65000] for start in range(0, len(exif), 65000)]
    marked = [
        b"\xff\xe1" + struct.pack("!H", len(part) + 8) + b"Exif\0\0" + part for part in parts
    ]  # as long EXIF is cut
    return data[:2] + b"".join(marked) + data[2:]


TURNED = b"II*\0" + struct.pack("<IHHHIHH", 8, 2, 0x112, 3, 1, 6, 0)
DEEP = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))


@pytest.mark.parametrize(
    ("plain", "odd"),
    [
        (saved(NOISE, "JPEG"), with_exif(TURNED + struct.pack("<HHIII", 0x9999, 3, 200_000, 8, 0))),
        (saved(NOISE, "JPEG"), with_exif(TURNED + bytes(1_100_000))),
        (png(), png((b"acTL", bytes(8)), (b"acTL", bytes(8)))),
        (png(), png((b"cICP", b"\x09\x10\0\1"))),
        (
            png(),
            png(
                (b"gAMA", struct.pack("!I", 45455)),
                (b"cHRM", struct.pack("!8I", 31270, 32900, 15000, 6000, 30000, 60000, 64000, 33000)),
            ),
        ),
        (png(image=DEEP), png((b"tRNS", b"\0\5"), image=DEEP)),
        (png(), png((b"eXIf", TURNED), (b"eXIf", TURNED[:-4] + b"\1\0\0\0"))),
        (png(), png()[:-16] + bytes(4) + png()[-12:]),
        (
            saved(NOISE, "JPEG"),
            saved(NOISE, "JPEG")[:2] + exif_segment(TURNED[:8]) + exif_segment(TURNED) + saved(NOISE, "JPEG")[2:],
        ),
        (png(), png((b"iCCP", b"x\0\0" + zlib.compress(b"no profile, and others may take it for one")))),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_others_may_show_differently_is_no_copy(plain: bytes, odd: bytes) -> None:
    assert shown(plain) is not None
    assert shown(odd) != shown(plain)


def test_how_long_the_first_frame_is_shown_counts() -> None:
    frames = [NOISE.quantize(16), NOISE.rotate(90).quantize(16)]
    times = [
        saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=[first, 90]) for first in (10, 9000)
    ]
    assert shown(times[0]) != shown(times[1])


@pytest.mark.parametrize(
    "data",
    [
        saved(NOISE, "JPEG") + b"x" * 5000 + b"\xff\xd9",
        saved(NOISE, "JPEG", progressive=True) + b"x" * 5000,
        png((b"mkBT", bytes(5000))),
        png(behind=bytes(5000)),
        saved(NOISE, "WEBP") + bytes(5000),
        saved(NOISE, "BMP") + bytes(5000),
        saved(NOISE, "AVIF") + struct.pack("!I4s", 5000, b"mpvd") + bytes(4992),
    ],
)
def test_what_is_there_besides_the_pixels_is_known(data: bytes) -> None:
    assert decode(data)[1].about["extra"] == pytest.approx(5000, abs=20)
    for kind in ("JPEG", "PNG"):
        assert "extra" not in decode(saved(NOISE, kind))[1].about
    progressive = saved(NOISE, "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    comment = b"\xff\xfe" + struct.pack("!H", 9000) + b"\xff\xd9" * 4499
    for harmless in (saved(NOISE, "JPEG") + bytes(5000), progressive[:last] + comment + progressive[last:]):
        assert "extra" not in decode(harmless)[1].about
