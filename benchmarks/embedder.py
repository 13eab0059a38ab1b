"""The embedder: what does text search in one SELECT add, and what share of the network's pace do 32 clients get?

A real architecture with random weights: ``python -m benchmarks.embedder [NAME]``.
"""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psycopg
from PIL import Image

from benchmarks.harness import report, times_ms
from pgimgsearch.database import migrate
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.embedded import Embedded
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.indexing.build import BuildOptions, build_index
from pgimgsearch.models import canary
from pgimgsearch.models.spec import Checkpoint
from tests.server.conftest import PASSWORD, Serving, start_serving
from tests.support.builders import add_images, add_vectors, clustered

ROWS, QUESTIONS, ROUNDS = 100_000, 12, 5
CLIENTS, SECONDS, BATCH = 32, 10.0, 32
NAME = "openclip-vit-b-32-laion2b"


def main() -> list[dict[str, Any]]:
    """One server, one embedder; the network's own pace is taken while the embedder is at rest."""
    name = sys.argv[1] if len(sys.argv) > 1 else NAME
    with TemporaryDirectory() as folder:
        database = Embedded(Path(folder) / "home")
        url = database.keep(None)
        try:
            migrate.upgrade(url)
            # in a process of its own, see pgimgsearch/models/network_thread.py
            made = [sys.executable, "-m", "benchmarks.models", "--write", name, str(Path(folder) / "weights")]
            weights = subprocess.run(made, check=True, capture_output=True, text=True).stdout.split()[-1]
            with connect(url) as connection:
                model = open_model(connection, name, Checkpoint(weights))
                _fill(connection, model)
                serving = start_serving(url, Path(folder), "--model", name)
                try:
                    connection.execute(
                        "select imgsearch.connect_embedder('127.0.0.1', %s, %s)", [serving.port, PASSWORD]
                    )
                    return [_latency(connection, model), _texts(serving, model), _pictures(serving, model)]
                finally:
                    serving.stop()
        finally:
            database.stop()


def _fill(connection: Connection, model: LoadedModel) -> None:
    add_images(connection, ROWS)
    add_vectors(connection, model.stored.table_name, clustered(ROWS, model.stored.dim))
    build_index(connection, model.stored, BuildOptions(machine_memory() // 4))


def _latency(connection: Connection, model: LoadedModel) -> dict[str, Any]:
    fresh = (f"words number {number} that nobody asked before" for number in itertools.count())
    ask = "select * from imgsearch.search_text(%s, model => %s)"
    like = "select * from imgsearch.similar_to(imgsearch.text_vector('red', %s), model => %s)"
    name = model.stored.name
    ways: dict[str, Callable[[int], object]] = {
        "text forward, ms": lambda _: model.encoder.embed_text([next(fresh)]),
        "new text, ms": lambda _: connection.execute(ask, [next(fresh), name]).fetchall(),
        "cached text, ms": lambda _: connection.execute(ask, ["red", name]).fetchall(),
        "similar_to, ms": lambda _: connection.execute(like, [name, name]).fetchall(),
    }
    connection.execute(ask, ["red", name])
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, run in ways.items():
            taken[way] += times_ms(run, QUESTIONS)
    row = {way: float(np.median(times)) for way, times in taken.items()}
    row["new over forward, ms"] = row["new text, ms"] - row["text forward, ms"]
    row["cached over similar_to, ms"] = row["cached text, ms"] - row["similar_to, ms"]
    return report(f"Text search: {name} in one SELECT over {ROWS} vectors, new text over its forward pass", [row],
                  row["new text, ms"] / row["text forward, ms"], "forward + 5 ms; cached: similar_to + 2 ms")  # fmt: skip


def _texts(serving: Serving, model: LoadedModel) -> dict[str, Any]:
    count = itertools.count()

    def client() -> Callable[[], None]:
        address = f"host=127.0.0.1 port={serving.port} user=pgimgsearch dbname=pgimgsearch"
        login = psycopg.connect(address, password=PASSWORD, autocommit=True)

        def ask() -> None:
            question = {"ask": "text", "model": model.stored.name, "texts": [f"a text, number {next(count)}"]}
            login.execute(json.dumps(question))  # type: ignore[call-overload]

        return ask

    texts = [f"a text of some words, number {number}" for number in range(BATCH)]
    return _pace(
        "Texts: texts per second of 32 clients over passes of 32",
        client,
        lambda: model.encoder.embed_text(texts),
        "texts/s",
    )


def _pictures(serving: Serving, model: LoadedModel) -> dict[str, Any]:
    file = _jpeg(canary.images()[0])
    secret = {"Authorization": f"Bearer {PASSWORD}"}

    def client() -> Callable[[], None]:
        http = httpx.Client(base_url=f"http://127.0.0.1:{serving.http_port}", headers=secret, timeout=120)

        def ask() -> None:
            answer = http.post("/embed/image", params={"model": model.stored.name}, files={"files": file})
            assert answer.json()["results"][0]["status"] == "ok", answer.text

        return ask

    prepared = [model.encoder.prepare(canary.images()[0]) for _ in range(BATCH)]
    return _pace(
        "Images: images per second of 32 clients over passes of 32",
        client,
        lambda: model.encoder.embed(prepared),
        "images/s",
    )


def _jpeg(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def _pace(
    question: str, client: Callable[[], Callable[[], None]], forward: Callable[[], object], unit: str
) -> dict[str, Any]:
    """The embedder's pace under many clients over the network's own, in turns, as a machine has its moods."""
    asks = [client() for _ in range(CLIENTS)]
    for ask in asks:
        ask()
    forward()
    served, own = [], []
    for _ in range(ROUNDS):
        served.append(_served_pace(asks))
        own.append(BATCH * 1000 / float(np.median(times_ms(lambda _: forward(), 3))))
    row = {f"served, {unit}": float(np.mean(served)), f"forward of {BATCH}, {unit}": float(np.mean(own)),
           "clients": CLIENTS}  # fmt: skip
    return report(question, [row], float(np.mean(served) / np.mean(own)), "at least 0.9")


def _served_pace(asks: Sequence[Callable[[], None]]) -> float:
    """Answers a second to clients that ask for ``SECONDS``; the last answers are waited for."""
    done = [0] * len(asks)
    begin = time.perf_counter()

    def run(number: int) -> None:
        while time.perf_counter() < begin + SECONDS:
            asks[number]()
            done[number] += 1

    threads = [threading.Thread(target=run, args=[number]) for number in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
