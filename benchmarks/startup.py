"""Startup: pgimgsearch --help over the bare import of typer and psycopg."""

import subprocess
import sys
import time
from statistics import median

from benchmarks.harness import report

ROUNDS = 15


def seconds(*arguments: str) -> float:
    """Wall time of a fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> dict[str, object]:
    """Interleaved, medians."""
    rounds = [(seconds("-c", "import typer, psycopg"), seconds("-m", "pgimgsearch", "--help")) for _ in range(ROUNDS)]
    bare, ours = (median(column) for column in zip(*rounds, strict=True))
    row = {"import typer, psycopg, ms": bare * 1000, "pgimgsearch --help, ms": ours * 1000}
    return report("Startup: the time of --help over the import of typer and psycopg", [row], ours / bare, "at most 2")


if __name__ == "__main__":
    main()
