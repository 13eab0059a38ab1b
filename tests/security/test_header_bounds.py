"""Images of a few bytes that ask for hours or gigabytes are refused before they are decoded; real ones are not."""

import io
import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pgimgsearch.sources import avif, jpeg
from pgimgsearch.sources.decode import decode, decoding_cost
from pgimgsearch.sources.header_bounds import MOST_SCANS, MOST_SEGMENTS
from pgimgsearch.sources.limits import ImageLimits, TooManyPixels
from pgimgsearch.sources.tiff_tags import directory, tile_pixels

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


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("side", [4096, 46_336])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [4, 9])
def test_a_small_tiff_in_a_huge_tile_is_not_decoded(big: bool, side: int, order: str, kind: int) -> None:
    number = "Q" if big else "I"
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 8), (325, 8)]
    entries = b"".join(struct.pack(f"{order}HH{number}I{4 * big}x", tag, kind, 1, value) for tag, value in tags)
    mark = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head = mark + (struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8))
    data = head + struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + entries + b"\0" * 16
    assert directory(data)[322].first == side
    with pytest.raises(TooManyPixels, match="tile"):
        decode(data)


def test_tiles_of_real_tiffs_are_no_trouble() -> None:
    assert tile_pixels(saved("TIFF")) == 0
    assert directory(saved("TIFF"))[256].first == 128
    assert directory(saved("TIFF", big_tiff=True))[257].first == 96


@settings(max_examples=15)
@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.sampled_from(["4:2:0", "4:4:4"]))
def test_the_frames_of_an_avif_are_as_large_as_they_say(width: int, height: int, several: bool, form: str) -> None:
    """Of still ones and of sequences, whose streams lie elsewhere."""
    more = {"save_all": True, "append_images": [Image.new("RGB", (width, height), "blue")] * 2} if several else {}
    data = saved("AVIF", Image.new("RGB", (width, height), "red"), subsampling=form, quality=30, **more)
    assert avif.largest_frame(data) == width * height
    assert decode(data)[0].size == (width, height)


def test_an_avif_that_hides_its_size_is_not_decoded() -> None:
    data = saved("AVIF", Image.new("RGB", (2000, 1500), "red"), quality=10)
    small = data.replace(b"ispe\0\0\0\0" + struct.pack("!II", 2000, 1500), b"ispe\0\0\0\0" + struct.pack("!II", 64, 48))
    assert small != data
    with pytest.raises(TooManyPixels, match="a stream of 3000000 pixels"):
        decode(small, ImageLimits(max_pixels=2_000_000))
    reserved: list[int] = []
    decode(small, reserve=reserved.append)
    assert reserved[0] > 3_000_000 * 9
    assert decoding_cost(small).pixels == 3_000_000


def test_scans_hidden_behind_reserved_marks_count() -> None:
    """Which a decoder skips as it looks for the next restart."""
    whole = saved("JPEG", progressive=True, restart_marker_blocks=1)
    hidden = b"\xff\x02\xff\xff" + segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") * 300
    assert jpeg.scans(whole[:-2] + hidden + whole[-2:], 250) == 250


@pytest.mark.parametrize("way", ["late brand", "small header first", "padding first"])
def test_no_way_of_writing_an_avif_hides_its_size(way: str) -> None:
    """Each is one that decoders read."""
    data = saved("AVIF", Image.new("RGB", (2000, 1500), "red"), quality=10)
    small = saved("AVIF", Image.new("RGB", (16, 16), "red"), quality=10)
    if way == "late brand":
        size = struct.unpack("!I", data[:4])[0]
        made = b"\0\0\0\x60ftypmif1" + bytes(4) + b"mif1" * 18 + b"avif" + b"mif1" + data[size:]
        assert avif.largest_frame(made) in {0, 2000 * 1500, avif.UNKNOWN}  # its offsets are those of the other
        return
    start, length = _stream(data)
    first = small[slice(*_stream(small))] if way == "small header first" else b"\x12\0" * 30
    stream = first + data[start : start + length]
    assert avif._frame(stream, 0, len(stream)) == 2000 * 1500


def _stream(data: bytes) -> tuple[int, int]:
    (place,) = avif._places(data)[:1]
    return place[0], place[1] - place[0]


def test_a_header_of_many_points_is_read_or_refused() -> None:
    rng = np.random.default_rng(3)
    for _ in range(3000):
        unit = b"\x0a\x7f" + rng.bytes(127)
        with suppress(avif._UnclearError):
            assert avif._frame(unit, 0, len(unit)) >= 0


@settings(max_examples=300)
@given(st.data())
def test_no_bytes_end_a_look_at_a_header(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(KINDS))()
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:place] + data.draw(st.binary(max_size=8)) + whole[place + data.draw(st.integers(0, 8)) :]
    for look in (avif.largest_frame, tile_pixels, lambda one: jpeg.segments(one, 50), lambda one: jpeg.scans(one, 1)):
        assert look(damaged) >= 0


KINDS: list[Callable[[], bytes]] = [
    lambda: saved("AVIF", quality=20),
    lambda: saved("AVIF", save_all=True, append_images=[NOISE]),
    lambda: saved("JPEG", progressive=True),
    lambda: saved("TIFF"),
]
