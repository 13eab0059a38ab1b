"""Switch: how much slower are queries while 50,000 images get another model, and how long does the alias take to move?

``python -m benchmarks.switch [IMAGES]``. Two networks of real kind and small size, random weights; two clients ask at a
steady rate from a process of their own.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psycopg
from PIL import Image

from benchmarks.harness import fresh_database, report
from pgimgsearch.database.connection import connect
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.indexing.after_load import after_load
from pgimgsearch.ingest import run
from pgimgsearch.models import lookup
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.sources.folder import folder_source
from tests.support import checkpoints

IMAGES, CLIENTS, A_SECOND, SECONDS_BEFORE = 50_000, 2, 20, 30
MAX_LOAD = 0.5
MODELS = (("dinov2-base", 768), ("dinov2-large", 1024))


def main(images: int = IMAGES) -> dict[str, Any]:
    """Ask before, during and after; the ratio is that of the medians."""
    with TemporaryDirectory() as folder, fresh_database() as (url, connection):
        weights = {name: checkpoint(Path(folder) / name, name, width) for name, width in MODELS}
        draw(Path(folder) / "photos", images)
        (old, _), (new, _) = MODELS
        with connect(url) as own:
            model = open_model(own, old, Checkpoint(weights[old]))
        run.ingest(url, folder_source(Path(folder) / "photos"), [model], run.Options())
        after_load(url, [model.stored.name], remote=False)
        with asked(url, images) as answers:
            time.sleep(SECONDS_BEFORE)
            begun = time.time()
            done = command(url, "models", "switch", "default", "--to", new, "--weights", weights[new],
                           "--max-load", str(MAX_LOAD))  # fmt: skip
            ended = time.time()
            time.sleep(5)
            back = [seconds(url, "models", "rollback", "default") for _ in range(2)]
        connection.execute("select imgsearch.set_alias('default', %s)", [old])
        start = time.perf_counter()
        connection.execute("select imgsearch.rollback_alias('default')")
        at_once = time.perf_counter() - start
    errors = [one for one in answers if one["error"]]
    before = [one["ms"] for one in answers if one["at"] < begun]
    during = [one["ms"] for one in answers if begun <= one["at"] < ended]
    ratio = float(np.median(during) / np.median(before))
    rows = [
        {"when": "before", "queries": len(before), "p50_ms": float(np.median(before)), "p99_ms": float(np.percentile(before, 99))},
        {"when": "during the switch", "queries": len(during), "p50_ms": float(np.median(during)),
         "p99_ms": float(np.percentile(during, 99)), "minutes": (ended - begun) / 60, "failed": len(errors)},
        {"when": "the alias moves", "locked_ms": done["locked_ms"], "recall": done["recall"], "missing": done["missing"]},
        {"when": "rollback", "seconds_by_command": max(back), "seconds_in_sql": at_once},
    ]  # fmt: skip
    return report(
        f"Switch: p50 of similar() during a switch of {images} images over before", rows, ratio, "at most 1.5"
    )


def checkpoint(folder: Path, name: str, width: int) -> str:
    """A DINOv2 of one layer and random weights, of the real width, in the layout of the hub."""
    import torch
    import transformers as hf

    torch.manual_seed(width)
    shape = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 16, "intermediate_size": 64}
    hf.Dinov2Model(hf.Dinov2Config(**shape, image_size=28, patch_size=14)).save_pretrained(folder)
    square = {"height": 28, "width": 28}
    settings = {**checkpoints.processor_of(lookup.resolve(name)), "size": {"shortest_edge": 28}, "crop_size": square}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def draw(folder: Path, images: int) -> None:
    """Small images, each another: a few patches of colour."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(images):
        patches = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((64, 48)).save(folder / f"{number:06}.jpg", quality=85)


@contextlib.contextmanager
def asked(url: str, images: int) -> Iterator[list[dict[str, Any]]]:
    """Clients that ask by the alias, at a steady rate, while the block runs; afterwards each answer's time."""
    answers: list[dict[str, Any]] = []
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.switch", "--ask", url, str(images)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield answers
        finally:
            process.send_signal(signal.SIGINT)
            answers += map(json.loads, process.communicate()[0].splitlines())


def ask(url: str, images: int) -> None:
    """What that process does."""
    stopped, answers = threading.Event(), list[dict[str, Any]]()
    signal.signal(signal.SIGINT, lambda *_: stopped.set())

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with psycopg.connect(url, autocommit=True) as own:
            due = time.perf_counter()
            while not stopped.is_set():
                due += 1 / A_SECOND
                time.sleep(max(0.0, due - time.perf_counter()))
                start, error = time.perf_counter(), ""
                try:
                    rows = own.execute("select * from imgsearch.similar(%s)", [int(rng.integers(1, images))]).fetchall()
                    error = "" if len(rows) == 10 else f"{len(rows)} answers"
                except psycopg.Error as failed:
                    error = str(failed)
                answers.append({"at": time.time(), "ms": 1000 * (time.perf_counter() - start), "error": error})

    threads = [threading.Thread(target=client, args=[seed]) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
    print("\n".join(map(json.dumps, answers)))


def command(url: str, *arguments: str) -> dict[str, Any]:
    """A command as a user runs it, answering JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "pgimgsearch", "--db", url, "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout))


def seconds(url: str, *arguments: str) -> float:
    """How long a command takes, from the shell."""
    start = time.perf_counter()
    command(url, *arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ask"]:
        ask(sys.argv[2], int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
