"""Decode in a process of its own, within limits of memory and time: formats whose libraries can be led to take any.

A request is a header in JSON and the bytes of a file; answers are headers with bytes. A process serves one request at a
time, and ends with this one.
"""

import atexit
import builtins
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from pgimgsearch.sources.limits import ImageLimits, TooCostly, TooManyPixels

HEAD = struct.Struct("!IQ")  # bytes of the header, and of what follows it
BYTES_BESIDES = 7  # a pixel, here: as it is received, and as Pillow holds it
SECONDS_TO_LOOK = 120  # in which it must have read the header of an image, after its start on a busy machine
PATIENCE = 10  # times the seconds of computing that a process may take, in which it must answer
# Formats that are decoded here: their libraries take what the size of an image says, and they are the most frequent.
TRUSTED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
RUNS = {b"\1\0\0\0", b"\2\0\0\0"}  # biCompression of a BMP: RLE8 and RLE4
ERRORS: dict[str, type[Exception]] = {
    one.__name__: one for one in (TooManyPixels, TooCostly, UnidentifiedImageError)
}  # fmt: skip


class DecoderEnded(MemoryError):  # noqa: N818  (its name is what ingest_failure stores)
    """The process that decoded was ended, as by a system that has no memory left: not a verdict on the file."""


def is_trusted(data: bytes) -> bool:
    """Whether an image is decoded in this process."""
    packed = data[:2] == b"BM" and data[30:34] in RUNS  # which Pillow unpacks in Python
    return not packed and (data.startswith(TRUSTED) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"))


def send(stream: IO[bytes], header: dict[str, Any], *parts: bytes | memoryview) -> None:
    """Write a message."""
    encoded = json.dumps(header).encode()
    stream.write(HEAD.pack(len(encoded), sum(map(len, parts))) + encoded)
    for part in parts:
        stream.write(part)
    stream.flush()


def ask(
    kind: str, data: bytes, limits: ImageLimits, reserve: Callable[[int], None] = lambda _: None, **options: Any
) -> tuple[dict[str, Any], Image.Image | None]:  # fmt: skip
    """What a process makes of a file: the facts, and its pixels. Raises what decoding raises, and TooCostly."""
    pool = _pool()
    child = pool.take()
    try:
        request = {"kind": kind, "max_pixels": limits.max_pixels, "max_bytes": limits.max_bytes, **options}
        answer, pixels = child.ask(request, data, reserve)
    except BaseException:
        child.end()
        raise
    pool.give(child)
    if "error" in answer:
        name = answer["error"]
        known = ERRORS.get(name) or getattr(builtins, name, None)
        error = known if isinstance(known, type) and issubclass(known, Exception) else OSError
        raise error(answer["message"])
    if pixels is None:
        return answer, None
    size = (answer["width"], answer["height"])
    return answer, Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)


class _Child:
    """A process that decodes."""

    def __init__(self) -> None:
        self._deadline = 0.0  # of time.monotonic(), for what it sends next
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(  # its session is not that of the terminal, whose Ctrl-C is for us
            [sys.executable, "-P", "-m", "pgimgsearch.sources.decoder_child"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"PYTHONPATH": root, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(
        self, request: dict[str, Any], data: bytes, reserve: Callable[[int], None]
    ) -> tuple[dict[str, Any], bytearray | None]:  # fmt: skip
        """The answer to a request."""
        assert self._process.stdin is not None
        self._deadline = time.monotonic() + SECONDS_TO_LOOK
        try:
            send(self._process.stdin, request, data)
            while True:
                header, content = self._receive()
                if "reserve" not in header:
                    return header, content if "width" in header and content else None
                reserve(header["reserve"])
                send(self._process.stdin, {"go": True})
                self._deadline = time.monotonic() + PATIENCE * header["seconds"]
        except (BrokenPipeError, EOFError) as error:
            raise self._ending() from error

    def _receive(self) -> tuple[dict[str, Any], bytearray]:
        size, number = HEAD.unpack(self._read(HEAD.size))
        return json.loads(self._read(size)), self._read(number)

    def _read(self, size: int) -> bytearray:
        assert self._process.stdout is not None
        data, place = bytearray(size), 0
        view, descriptor = memoryview(data), self._process.stdout.fileno()
        while place < size:
            left = max(0, self._deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                raise TooCostly("decoding it takes far longer than its size says")
            count = os.readv(descriptor, [view[place:]])
            if count == 0:
                raise EOFError
            place += count
        return data

    def _ending(self) -> Exception:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return TooCostly("decoding it takes far longer than its size says")
        if code in {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}:
            return TooCostly(f"its decoder broke ({signal.Signals(-code).name})")
        return DecoderEnded(f"the process that decoded it was ended ({code})")

    def is_there(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()


class _Pool:
    """Processes that wait for work; as many are made as threads ask at once."""

    def __init__(self) -> None:
        self._idle: list[_Child] = []
        self._lock = threading.Lock()

    def take(self) -> _Child:
        """One for a request."""
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.is_there():
                    return child
                child.end()
        return _Child()

    def give(self, child: _Child) -> None:
        """It has answered."""
        with self._lock:
            self._idle.append(child)

    def close(self) -> None:
        """End those that wait."""
        with self._lock:
            while self._idle:
                self._idle.pop().end()


@cache
def _pool() -> _Pool:
    pool = _Pool()
    atexit.register(pool.close)
    os.register_at_fork(after_in_child=_pool.cache_clear)  # the pipes are those of the parent
    return pool
