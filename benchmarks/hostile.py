"""Hostile clients: what a well-behaved one waits longer, and what memory the embedder takes, while others mean harm.

Ten thousand fuzzed messages over both protocols, 50 connections that starve, ask too much or never read, and six images of
99.8 megapixels, all at once, against ``serve`` with MobileNetV2. ``python -m benchmarks.hostile``; real weights where
PGIMGSEARCH_TEST_DATA has them, else random ones.
"""

import io
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg
from PIL import Image

from benchmarks.harness import QUICK, fresh_database, report
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.models.spec import Checkpoint
from tests.server.conftest import PASSWORD, Serving, start_serving

NAME = "timm:mobilenetv2_100"
WEIGHTS = "weights/mobilenetv2_100_backbone_timm.safetensors"
FUZZED, CONNECTIONS, BOMBS = (1000 if QUICK else 10_000), 50, 6
SECRET = {"Authorization": f"Bearer {PASSWORD}"}


def main() -> dict[str, Any]:
    """The same questions at rest and under attack."""
    data = Path(os.environ.get("PGIMGSEARCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    known = Checkpoint(str(data / WEIGHTS)) if (data / WEIGHTS).exists() else Checkpoint()
    with fresh_database() as (url, connection), TemporaryDirectory() as folder:
        model = open_model(connection, NAME, known).stored.name
        open_model(connection, "palette")
        serving = start_serving(url, Path(folder), "--model", model, "--model", "palette")
        try:
            rest = _questions(serving, model, lambda asked: asked >= 200)
            server, most, begin = psutil.Process(serving.process.pid), list[int](), time.perf_counter()
            attack = get_context("spawn").Process(target=_attack, args=[serving.port, serving.http_port, model])
            attack.start()
            watching = threading.Thread(target=_watch, args=[server, attack, most])
            watching.start()
            under = _questions(serving, model, lambda _: not attack.is_alive())
            watching.join()
            seconds = time.perf_counter() - begin
        finally:
            serving.stop()
    delays = [np.percentile(under[kind], 99) - np.percentile(rest[kind], 99) for kind in rest]
    rows = [
        {"client": kind, "questions": len(under[kind]), **{
            f"{when}, p{part}, ms": float(np.percentile(times[kind], part))
            for when, times in (("at rest", rest), ("under attack", under)) for part in (50, 99)
        }} for kind in rest
    ]  # fmt: skip
    rows.append({"fuzzed messages": FUZZED, "seconds": seconds, "memory at most, MB": max(most) / 1e6})
    return report("Hostile: what a client waits longer at p99 while others attack, in seconds", rows,
                  float(max(delays)) / 1000, "at most 0.5, and 1,500 MB")  # fmt: skip


def _questions(serving: Serving, model: str, enough: Callable[[int], bool]) -> dict[str, list[float]]:
    """Client -> milliseconds of its questions: a login and a text in SQL, and an image over HTTP, in turns."""
    file, taken = _file("JPEG", 224), {"SQL": list[float](), "HTTP": list[float]()}
    while not enough(len(taken["SQL"])):
        begin = time.perf_counter()
        with psycopg.connect(
            host="127.0.0.1", port=serving.port, user="pgimgsearch", password=PASSWORD, autocommit=True, prepare_threshold=None
        ) as client:  # fmt: skip
            client.execute(_text(f"red {len(taken['SQL'])}"))
        middle = time.perf_counter()
        answer = httpx.post(f"http://127.0.0.1:{serving.http_port}/embed/image?model={model}", files={"files": file},
                            headers=SECRET, timeout=120)  # fmt: skip
        answer.raise_for_status()
        taken["SQL"].append((middle - begin) * 1000)
        taken["HTTP"].append((time.perf_counter() - middle) * 1000)
    return taken


def _watch(server: psutil.Process, attack: Any, most: list[int]) -> None:
    while attack.is_alive():
        most.append(server.memory_info().rss)
        attack.join(0.05)


def _attack(port: int, http_port: int, model: str) -> None:
    """In a process of its own, which gives way to the others: it stands for other machines."""
    os.nice(10)
    Attack(port, http_port, model).run()


class Attack:
    """All of it at once, in threads, until the fuzzed messages are sent and the images answered."""

    def __init__(self, port: int, http_port: int, model: str) -> None:
        self._port, self._http_port, self._model = port, http_port, model
        self._stop = threading.Event()
        self._large = _file("PNG", 9990)

    def run(self) -> None:
        """Attack."""
        kinds = [self._silent, self._half_login, self._half_message, self._half_head, self._greedy]
        endless = [threading.Thread(target=kinds[n % len(kinds)]) for n in range(CONNECTIONS)]
        finite = [threading.Thread(target=self._fuzz, args=[part]) for part in range(4)]
        finite += [threading.Thread(target=self._bomb) for _ in range(BOMBS)]
        for thread in [*endless, *finite]:
            thread.start()
        for thread in finite:
            thread.join()
        self._stop.set()

    def _fuzz(self, part: int) -> None:
        made = random.Random(part)
        for _ in range(FUZZED // 4):
            with suppress(OSError):
                address = ("127.0.0.1", made.choice([self._port, self._http_port]))
                with socket.create_connection(address, timeout=10) as client:
                    client.sendall(_noise(made))

    def _bomb(self) -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"http://127.0.0.1:{self._http_port}/embed/image?model={self._model}", files={"files": self._large},
                       headers=SECRET, timeout=300)  # fmt: skip

    def _held(self, port: int, sent: bytes) -> None:
        while not self._stop.is_set():
            with suppress(OSError), ExitStack() as stack:
                clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(10)]
                for client in clients:
                    client.sendall(sent)
                self._stop.wait(2)

    def _silent(self) -> None:
        self._held(self._port, b"")

    def _half_login(self) -> None:
        self._held(self._port, struct.pack("!ii", 100, 3 << 16) + b"user\0pg")

    def _half_head(self) -> None:
        self._held(self._http_port, b"POST /embed/text HTTP/1.1\r\nHost: x\r\n")

    def _half_message(self) -> None:
        while not self._stop.is_set():
            with suppress(psycopg.Error, OSError), self._login() as client, socket.fromfd(
                client.pgconn.socket, socket.AF_INET, socket.SOCK_STREAM
            ) as raw:  # fmt: skip
                raw.sendall(b"Q" + struct.pack("!i", 80_000_000) + b"x" * 5_000_000)
                self._stop.wait(2)

    def _greedy(self) -> None:
        template = "\n".join(["a {}"] * 40)
        while not self._stop.is_set():
            with suppress(psycopg.Error), self._login() as client:
                client.execute(_text(*(f"red {n}" for n in range(100)), template=template))

    def _login(self) -> Any:
        return psycopg.connect(host="127.0.0.1", port=self._port, user="pgimgsearch", password=PASSWORD,
                               autocommit=True, prepare_threshold=None)  # fmt: skip


def _text(*texts: str, template: str = "{}") -> bytes:
    return json.dumps({"ask": "text", "model": "palette", "texts": texts, "template": template}).encode()


def _noise(made: random.Random) -> bytes:
    """Bytes as either protocol has them, with something wrong."""
    body = made.randbytes(made.randrange(200))
    return made.choice([
        body, struct.pack("!ii", len(body) + 8, made.choice([3 << 16, 80877103, 80877104, 80877102, 1234])) + body,
        struct.pack("!ii", made.randrange(-5, 2**31 - 1), 3 << 16) + body, b"Q" + struct.pack("!i", len(body) + 4) + body,
        b"POST /embed/text HTTP/1.1\r\nContent-Length: 100\r\n\r\n" + body, b"GET /" + body + b" HTTP/1.1\r\n\r\n",
        b"POST /embed/image HTTP/1.1\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer " + PASSWORD.encode() + b"\r\n\r\n" + body,
        b"GET /health HTTP/1.1\r\nHost: " + body + b"\r\n\r\n",
    ])  # fmt: skip


def _file(kind: str, side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(out, kind)
    return out.getvalue()


if __name__ == "__main__":
    main()
