"""Clients that search at once, each a process of its own: how many answers a second they get together."""

import subprocess
import sys
import time

import numpy as np
import psycopg

from pgimgsearch.models.lanes import cores

CLIENTS, SECONDS = (1, cores(), 16), 6.0


def throughputs(url: str, rows: int) -> dict[str, float]:
    """Queries a second over images 1 .. rows, of one client, of as many as there are cores, and of 16, and what 16 win."""
    rates = {f"{clients} clients, queries/s": _throughput(url, rows, clients) for clients in CLIENTS}
    return rates | {"16 clients over 1": rates["16 clients, queries/s"] / rates["1 clients, queries/s"]}


def _throughput(url: str, rows: int, clients: int) -> float:
    """Queries a second of so many processes at once, each on a connection of its own."""
    command = [sys.executable, "-m", "benchmarks.clients", url, str(rows)]
    processes = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(clients)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def _ask(url: str, rows: int, seed: int) -> None:
    """Ask as fast as it goes, when told to."""
    ids = np.random.default_rng(100 + seed).integers(1, rows, 10_000).tolist()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select * from imgsearch.similar(%s)", [ids[0]]).fetchall()
        print("ready", flush=True)
        sys.stdin.readline()
        start, done = time.perf_counter(), 0
        while (gone := time.perf_counter() - start) < SECONDS:
            connection.execute("select * from imgsearch.similar(%s)", [ids[done % len(ids)]]).fetchall()
            done += 1
    print(done / gone)


if __name__ == "__main__":
    _ask(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
