"""Images that take far more than their size says: what decodes them is bounded in memory and time, and may end."""

import io
import os
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image, UnidentifiedImageError

from pgimgsearch.sources import decoder_process
from pgimgsearch.sources.decode import (
    FORMATS,
    decode,
    decode_here,
    decode_pixels,
    decode_small,
    decoding_cost,
    register_formats,
)
from pgimgsearch.sources.decoder_process import DecoderEnded, is_trusted
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits, TooCostly, TooManyPixels

NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8))


def saved(kind: str, image: Image.Image = NOISE, **options: Any) -> bytes:
    register_formats()
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(autouse=True)
def own_processes() -> Iterator[None]:
    decoder_process._pool().close()
    yield
    decoder_process._pool().close()


def _children() -> list[psutil.Process]:
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.Error):
            if "pgimgsearch.sources.decoder_child" in one.cmdline():
                found.append(one)
    return found


@pytest.mark.parametrize(
    "kind", ["AVIF", "HEIF", "JPEG2000", "TIFF", "PPM", "SGI", "TGA", "PCX", "JPEG", "PNG", "WEBP", "BMP"]
)
def test_it_makes_no_difference_where_an_image_is_decoded(kind: str) -> None:
    data = saved(kind)
    assert kind in FORMATS
    there, here = decode(data), decode_here(data, DEFAULT_LIMITS, lambda _, __: None)
    assert there[1] == here[1]
    for one in (there[0], decode_pixels(data)):
        assert one.tobytes() == here[0].tobytes()
    assert decode_small(data, 32).size == (32, 24)
    assert decoding_cost(data).pixels in {128 * 96, 128 * 96 * 50}
    assert len(_children()) == (not is_trusted(data))


def huge_tile(side: int) -> bytes:
    """A TIFF of 64 x 64 in one tile of so many pixels, which is decoded whole."""
    packed = zlib.compressobj(9)
    tile = b"".join([*(packed.compress(bytes(side << 10)) for _ in range(side >> 10)), packed.flush()])
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 8),
            (325, len(tile))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 9, 1, value) for tag, value in tags)  # of a kind that is signed
    return b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + struct.pack("<H", len(tags)) + entries + bytes(4)


def hidden_size() -> bytes:
    """An AVIF of 9,000 x 9,000 that says to be 64 x 64."""
    large = saved("AVIF", Image.new("RGB", (9000, 9000), "red"), quality=5, speed=10, subsampling="4:4:4")
    said = b"ispe\0\0\0\0" + struct.pack("!II", 9000, 9000)
    assert said in large
    return large.replace(said, b"ispe\0\0\0\0" + struct.pack("!II", 64, 64))


@pytest.mark.parametrize("make", [lambda: huge_tile(32 << 10), hidden_size], ids=["tile", "stream"])
def test_memory_is_bounded_whatever_the_file_hides(make: Any) -> None:
    """The process that decodes ends up with little more than its size asks for, and the next image is decoded."""
    data = make()
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            for child in _children():
                with suppress(psutil.Error):
                    most = max(most, child.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with suppress(Exception):  # whatever its library makes of too little memory
            decode(data)
    finally:
        done.set()
        watcher.join()
    assert most < 600 << 20
    assert decode(saved("AVIF"))[0].size == NOISE.size


def test_time_is_bounded_and_the_file_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the seconds that it computes, and by those that pass."""
    grid = many_references()
    with pytest.raises(TooCostly, match="far longer"):
        decode_pixels(grid)
    monkeypatch.setattr(decoder_process, "PATIENCE", 0.02)
    with pytest.raises(TooCostly, match="far longer"):
        decode_pixels(grid)
    monkeypatch.undo()
    assert decode(saved("AVIF"))[0].size == NOISE.size


def many_references() -> bytes:
    """An image in rows of cells that are all the same stream, which a decoder decodes for each."""
    cell = saved("AVIF", Image.effect_noise((4000, 4000), 90).convert("RGB"), quality=30, speed=10)
    place = cell.index(b"mdat") + 4
    stream = cell[place:]
    config = cell[cell.index(b"av1C") - 4 :][: struct.unpack("!I", cell[cell.index(b"av1C") - 4 :][:4])[0]]
    number = 400

    def box(kind: bytes, content: bytes, full: bool = False) -> bytes:
        content = bytes(4) + content if full else content
        return struct.pack("!I", len(content) + 8) + kind + content

    def meta(offset: int) -> bytes:
        items = b"".join(
            box(b"infe", b"\2\0\0\0" + struct.pack("!HH4s", n, 0, b"grid" if n == 1 else b"av01") + b"\0")
            for n in range(1, number + 2)
        )
        grid = struct.pack("!BBBBHH", 0, 0, 19, 19, 64 * 20, 64 * 20)
        places = [struct.pack("!HHHHII", 1, 1, 0, 1, 0, len(grid))]
        places += [struct.pack("!HHHHII", n, 0, 0, 1, offset, len(stream)) for n in range(2, number + 2)]
        iloc = b"\1\0\0\0" + b"\x44\0" + struct.pack("!H", number + 1) + b"".join(places)
        cells = b"".join(struct.pack("!H", n) for n in range(2, number + 2))
        reference = box(b"dimg", struct.pack("!HH", 1, number) + cells)
        sizes = [box(b"ispe", struct.pack("!II", *size), True) for size in ((1280, 1280), (64, 64))]
        pixi = box(b"pixi", b"\3\x08\x08\x08", True)
        entries = struct.pack("!HB", 1, 2) + b"\1\3"
        entries += b"".join(struct.pack("!HB", n, 3) + b"\2\3\x84" for n in range(2, number + 2))
        properties = box(b"ipco", sizes[0] + sizes[1] + pixi + config)
        association = box(b"ipma", struct.pack("!I", number + 1) + entries, True)
        return box(
            b"meta",
            box(b"hdlr", bytes(4) + b"pict" + bytes(13), True) + box(b"pitm", struct.pack("!H", 1), True)
            + box(b"iinf", struct.pack("!H", number + 1) + items, True) + box(b"iref", reference, True)
            + box(b"iprp", properties + association) + box(b"iloc", iloc) + box(b"idat", grid),
            True,
        )  # fmt: skip

    head = box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf")
    offset = len(head) + len(meta(0)) + 8
    return head + meta(offset) + box(b"mdat", stream)


def test_a_process_that_is_ended_is_no_verdict_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a system that has no memory left; the next one is decoded by another."""
    for seen in (True, False):
        decode(saved("TIFF"))
        (child,) = _children()
        child.kill()
        child.wait()
        if seen:
            assert decode(saved("TIFF"))[0].size == NOISE.size
            continue
        monkeypatch.setattr(decoder_process._Child, "is_there", lambda _: True)
        with pytest.raises(DecoderEnded):
            decode(saved("TIFF"))
    assert decode(saved("TIFF"))[0].size == NOISE.size


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no limits of a process")
def test_the_limits_of_one_image_are_not_those_of_the_next() -> None:
    """Which must be read before its size is known, in whatever time the one before has left."""
    decode(saved("TIFF"))
    with suppress(Exception):
        decode(huge_tile(32 << 10))
    (child,) = _children()
    for what in (psutil.RLIMIT_AS, psutil.RLIMIT_CPU):
        assert child.rlimit(what)[0] in {psutil.RLIM_INFINITY, child.rlimit(what)[1]}


def test_errors_are_those_of_the_decoder() -> None:
    with pytest.raises(UnidentifiedImageError, match="PDF is not read"):
        decode(b"%PDF-1.7 ...")
    with pytest.raises(TooManyPixels, match="1000 pixels"):
        decode(saved("TIFF"), ImageLimits(max_pixels=1000))
    with pytest.raises(OSError, match="truncated"):
        decode(saved("TIFF")[:-2000])
    refused: list[int] = []

    def refuse(count: int) -> None:
        refused.append(count)
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        decode(saved("AVIF"), reserve=refuse)
    assert refused[0] > NOISE.width * NOISE.height * 9


def test_threads_decode_side_by_side(tmp_path: Path) -> None:
    files = [saved("TIFF", NOISE.rotate(number)) for number in range(24)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda data: decode(data)[0].tobytes(), files))
    assert found == [NOISE.rotate(number).tobytes() for number in range(24)]
    assert 1 <= len(_children()) <= 4
    assert {os.getsid(child.pid) == child.pid for child in _children()} == {True}  # Ctrl-C is not theirs
