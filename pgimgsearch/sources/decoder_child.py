"""The process that decodes for another one (``decoder_process``): reads requests, bounds itself, and answers."""

import json
import math
import os
import resource
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

from pgimgsearch.sources.decode import (
    decode_here,
    decode_pixels_here,
    decode_small_here,
    decoding_cost_here,
    limit_pixels,
)
from pgimgsearch.sources.decoder_process import BYTES_BESIDES, HEAD, send
from pgimgsearch.sources.limits import ImageLimits
from pgimgsearch.sources.memory_budget import give_back

SPARE = 256 << 20  # bytes of address space besides what the size of an image asks for
MORE = 1.5  # times as much as that may be taken
SECONDS, SECONDS_OF_FRAMES = 5, 30  # of computing, besides one a megapixel; where all frames are looked at


class _Served:
    """One request: its limits, and where it asks for more memory."""

    def __init__(self, out: BinaryIO, source: BinaryIO, seconds: float) -> None:
        self._out, self._source, self._seconds = out, source, seconds

    def reserve(self, count: int, pixels: int) -> None:
        """Ask for memory, and from then on take no more of it, nor of time."""
        seconds = math.ceil(self._seconds + pixels / 1e6)
        send(self._out, {"reserve": count + BYTES_BESIDES * pixels, "seconds": seconds})
        receive(self._source)
        bound(int(count * MORE), seconds)


def bound(count: int, seconds: int) -> None:
    """Let this process take so many bytes more than it has, and compute so many seconds more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    now = math.ceil(used.ru_utime + used.ru_stime)
    _set(resource.RLIMIT_CPU, now + seconds)
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            pages = int(file.read().split()[0])
        _set(resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE") + count + SPARE)


def unbound() -> None:
    """Lift the bounds of a request: the next one must be read first, whatever its size."""
    for what in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
        resource.setrlimit(what, (resource.getrlimit(what)[1],) * 2)


def _set(what: int, soft: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Read a message; raises EOFError where there is none any more."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EOFError
    size, number = HEAD.unpack(head)
    return json.loads(stream.read(size)), stream.read(number)


def _answer(served: _Served, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    limits = ImageLimits(request["max_pixels"], request["max_bytes"])
    limit_pixels(limits.max_pixels)
    kind = request["kind"]
    if kind == "cost":
        return asdict(decoding_cost_here(data)), b""
    if kind == "decode":
        image, facts = decode_here(data, limits, served.reserve)
        about = asdict(facts) | {"pixel_hash": facts.pixel_hash.hex() if facts.pixel_hash else None}
        return about, image.tobytes()
    if kind == "small":
        image = decode_small_here(data, request["side"], limits, served.reserve)
    else:
        image = decode_pixels_here(data, limits, served.reserve)
    return {"width": image.width, "height": image.height}, image.tobytes()


def main() -> None:
    """Serve requests of standard input until it ends."""
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1  # each has memory of its own, and files are decoded side by side
    source, out = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request, data = receive(source)
        except EOFError:
            return
        served = _Served(out, source, SECONDS_OF_FRAMES if request["kind"] == "decode" else SECONDS)
        bound(3 * len(data), SECONDS)
        try:
            answer, pixels = _answer(served, request, data)
        except MemoryError:
            answer, pixels = (
                {"error": "TooCostly", "message": "decoding it takes far more memory than its size says"},
                b"",
            )
        except Exception as error:  # broken bytes raise anything
            answer, pixels = {"error": type(error).__name__, "message": str(error)[:2000]}, b""
        data = b""
        unbound()
        send(out, answer, pixels)
        pixels = b""
        give_back()


if __name__ == "__main__":
    main()
