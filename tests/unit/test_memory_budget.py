"""Memory that threads share: never more than there is, unless by one alone, and nobody waits for ever."""

import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pgimgsearch.sources.decode import BYTES_A_PIXEL, decode
from pgimgsearch.sources.memory_budget import MemoryBudget

SIZE = 10


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 15), min_size=1, max_size=3), min_size=1, max_size=30))
def test_all_get_their_turn_and_no_more_than_fits(requests: list[list[int]]) -> None:
    room, lock = MemoryBudget(SIZE), threading.Lock()
    first: dict[int, int] = {}

    def work(number: int) -> None:
        with room.share() as take:
            for count in requests[number]:
                take(count)
                with lock:
                    first.setdefault(number, count)
                    assert sum(first.values()) <= SIZE or len(first) == 1
            with lock:
                del first[number]

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(work, number) for number in range(len(requests))]
        for one in done:
            one.result(timeout=60)


def test_what_does_not_fit_waits_until_it_does() -> None:
    room, waits = MemoryBudget(SIZE), threading.Event()

    class Watched(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waits.set()
            return super().wait(timeout)

    room._changed = Watched()

    def small() -> None:
        with room.share() as take:
            take(SIZE - 5)

    with ThreadPoolExecutor(1) as pool:
        with room.share() as take:
            take(6)
            waiting = pool.submit(small)
            assert waits.wait(timeout=60)
            assert not waiting.done()
        waiting.result(timeout=60)


def test_what_a_broken_picture_has_taken_is_given_back() -> None:
    room = MemoryBudget(SIZE)
    with pytest.raises(OSError, match="broken"), room.share() as take:
        take(SIZE + 1)
        raise OSError("broken")
    with room.share() as take:
        take(1)
        with ThreadPoolExecutor(1) as pool, room.share() as other:
            pool.submit(other, SIZE - 1).result(timeout=60)


def test_a_picture_says_what_it_takes_before_its_pixels_are_there() -> None:
    out = io.BytesIO()
    Image.new("RGB", (1600, 1200)).save(out, "JPEG")
    taken: list[int] = []
    decode(out.getvalue(), reserve=taken.append)
    whole = 1600 * 1200 * BYTES_A_PIXEL
    assert taken == [whole]
    with pytest.raises(OSError, match="truncated"):
        decode(out.getvalue()[:2000], reserve=taken.append)
    assert taken == [whole, whole, 2 * whole]  # to see whether its end mark alone is missing


PEAK = """
import io, sys
from pathlib import Path
from PIL import Image
from pgimgsearch.sources.decode import decode, decoding_cost, register_formats
register_formats()
kind, mode, size = sys.argv[1], sys.argv[2], (5000, 3000)
picture, exif, out = Image.new(mode, size, 120), Image.Exif(), io.BytesIO()
exif[0x0112] = 6  # to be rotated
picture.save(out, kind, **({} if kind in {"GIF", "TGA", "QOI", "JPEG2000"} else {"exif": exif}),
             **({"lossless": True} if kind == "WEBP" else {"speed": 10} if kind == "AVIF" else {}))
data = out.getvalue()
small = io.BytesIO()
Image.new(mode, (64, 64)).save(small, kind)
decode(small.getvalue())  # what a library takes once
del picture, out
Path("/proc/self/clear_refs").write_text("5")
def peak():
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before = peak()
decode(data)
print(decoding_cost(data).bytes, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "I;16"), ("WEBP", "RGB"), ("WEBP", "RGBA"), ("AVIF", "RGBA"),
     ("HEIF", "RGBA"), ("JPEG2000", "RGB"), ("JPEG2000", "RGBA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "F"), ("GIF", "P"),
     ("TGA", "RGBA"), ("QOI", "RGBA")],
)  # fmt: skip
def test_decoding_takes_no_more_than_is_reserved(kind: str, mode: str) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, kind, mode], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reserved, taken = map(int, done.stdout.split())
    assert 0 < taken <= reserved + 10_000_000
