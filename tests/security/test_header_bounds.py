"""Images of a few bytes that ask for hours or gigabytes are refused before they are decoded; real ones are not."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pgimgsearch.sources import jpeg
from pgimgsearch.sources.decode import decode
from pgimgsearch.sources.header_bounds import MOST_SCANS, MOST_SEGMENTS, check_header
from pgimgsearch.sources.limits import TooManyPixels
from pgimgsearch.sources.png_chunks import look_at
from pgimgsearch.sources.tiff_tags import most_values

NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8))


def saved(kind: str, image: Image.Image = NOISE, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def segment(mark: int, content: bytes) -> bytes:
    return bytes([0xFF, mark]) + struct.pack("!H", len(content) + 2) + content


def with_scans(number: int) -> bytes:
    """A progressive JPEG with more scans, each of which refines nothing."""
    whole = saved("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * number + whole[-2:]


def test_a_jpeg_of_many_scans_is_not_decoded() -> None:
    assert jpeg.scans(with_scans(300), 1000) == 0  # as there are not so many marks
    assert jpeg.scans(with_scans(300), 305) == 305
    with pytest.raises(TooManyPixels, match="scans"):
        decode(with_scans(300))
    with pytest.raises(TooManyPixels, match="segments"):
        whole = saved("JPEG")
        decode(whole[:2] + segment(0xE1, b"x") * (MOST_SEGMENTS + 2) + whole[2:])


@pytest.mark.parametrize(("side", "refused"), [(2000, False), (9990, True)])
def test_a_large_jpeg_has_few_scans(side: int, refused: bool) -> None:
    """Each takes as long as all of its pixels, however few bytes it is."""
    many = with_scans(50)
    frame = many.index(b"\xff\xc2") + 5
    large = many[:frame] + struct.pack("!HH", side, side) + many[frame + 4 :]
    if refused:
        with pytest.raises(TooManyPixels, match="in all scans"):
            decode(large)
    else:
        check_header(large)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", [b"cICP", b"gAMA", b"cHRM"])
def test_a_png_of_many_chunks_is_looked_at_once(kind: bytes) -> None:
    data = saved("PNG")
    found = look_at(data[:33] + chunk(kind, b"\1" * 64) * 20_000 + data[33:])
    assert found is not None
    assert 32 < len(found.meaning) < 100


def test_a_profile_is_no_program_and_no_bomb() -> None:
    """A chain of many steps took minutes, tags that share their bytes gigabytes."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    head, size = srgb[:128], 1 << 20
    shared = b"".join(struct.pack("!4sII", b"x%03d" % number, number, size - 300) for number in range(200))
    bomb = (head + struct.pack("!I", 200) + shared).ljust(size, b"\0")
    steps = b"mpet\0\0\0\0" + struct.pack("!HHI", 3, 3, 1) + struct.pack("!II", 24, 0)
    program = head + struct.pack("!I", 1) + struct.pack("!4sII", b"D2B0", 144, len(steps)) + steps
    for profile, told in ((bomb, "overlap"), (program, "program of many steps")):
        image, facts = decode(saved("PNG", icc_profile=profile))
        assert any(told in note for note in facts.notes)
        assert np.array_equal(np.asarray(image), np.asarray(NOISE))


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_a_jpeg_does_not_count(progressive: bool) -> None:
    """A video behind a photo, or a description, may hold any bytes."""
    whole = saved("JPEG", progressive=progressive, quality=95)
    assert jpeg.segments(whole, 9999) < 12
    about = segment(0xE2, (b"\xff\xda" + b"\xff\xe1") * 5000)
    odd = whole[:2] + about * 3 + whole[2:] + b"\xff\xda" * 9000
    assert jpeg.scans(odd, MOST_SCANS + 1) == (10 if progressive else 1)
    assert jpeg.segments(odd, 9999) == jpeg.segments(whole, 9999) + 3
    assert decode(odd)[0].size == NOISE.size


def test_scans_hidden_behind_reserved_marks_count() -> None:
    """Which a decoder skips as it looks for the next restart."""
    whole = saved("JPEG", progressive=True, restart_marker_blocks=1)
    hidden = b"\xff\x02\xff\xff" + segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") * 300
    assert jpeg.scans(whole[:-2] + hidden + whole[-2:], 250) == 250


@settings(max_examples=300)
@given(st.data())
def test_no_bytes_end_a_look_at_a_header(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(KINDS))()
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:place] + data.draw(st.binary(max_size=8)) + whole[place + data.draw(st.integers(0, 8)) :]
    for look in (most_values, lambda one: jpeg.segments(one, 50), lambda one: jpeg.scans(one, 1)):
        assert look(damaged) >= 0


KINDS: list[Callable[[], bytes]] = [
    lambda: saved("JPEG", progressive=True),
    lambda: saved("TIFF"),
]
