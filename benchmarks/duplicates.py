"""Duplicates: all pairs of 100,000 vectors over a bare LATERAL self-join on the same index; new ones; a peer's search."""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from benchmarks.harness import fresh_database, peer_python, report, run_peer
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.database.models import StoredModel
from pgimgsearch.indexing.build import BuildOptions, build_index
from tests.support.builders import add_images, add_model, add_vectors, clustered

ROWS, QUARTER, BATCH, PEER_ROWS, DIM, CUT = 100_000, 25_000, 1_000, 20_000, 768, 0.95
CHECKED = 4_000  # rows whose pairs are compared with NumPy's
CHILD = r"""
import json, re, sys
from pgimgsearch.database import store
from pgimgsearch.database.connection import connect
from pgimgsearch.duplicates.find import find
url, name, method, cut = sys.argv[1:]
with connect(url) as connection:
    model = store.get_model(connection, name)
found = find(url, model, float(cut), method=method)
memory = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"seconds": found.seconds, "megabytes": memory, "pairs": found.pairs, "method": found.method}))
"""


def with_copies(rows: int) -> NDArray[np.float32]:
    """Clustered vectors of which every tenth is a copy of an earlier one, by a cosine of 0.9 to 1."""
    rng = np.random.default_rng(7)
    vectors = clustered(rows, DIM)
    copies = np.arange(9, rows, 10)
    originals = vectors[copies - 1 - rng.integers(0, 9, len(copies))]
    cosine = rng.uniform(0.9, 0.9999, (len(copies), 1))
    noise = rng.standard_normal(originals.shape)
    noise -= (noise * originals).sum(1, keepdims=True) * originals
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    vectors[copies] = cosine * originals + np.sqrt(1 - cosine**2) * noise
    return vectors


def scan(url: str, name: str, method: str = "auto") -> dict[str, Any]:
    """A scan in a process of its own, with the memory it took."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, url, name, method, str(CUT)], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout))


def forget(connection: Connection, model: StoredModel, above: int = 0) -> None:
    """As if contents above an id had never been compared."""
    connection.execute(
        "delete from imgsearch.duplicate_scanned where model_id = %s and content_id > %s", [model.model_id, above]
    )
    connection.execute(
        "delete from imgsearch.duplicate_pair where model_id = %s and content_b > %s", [model.model_id, above]
    )
    connection.execute("vacuum analyze imgsearch.duplicate_scanned, imgsearch.duplicate_pair")


def bare_join(connection: Connection, model: StoredModel) -> float:
    """The self-join as one would write it: the ten nearest of each, cut at the threshold."""
    statement = sql.SQL(
        "select count(*) from {0} a cross join lateral (select b.content_id, a.embedding <=> b.embedding as distance "
        "from {0} b order by a.embedding <=> b.embedding limit 10) n where n.distance <= {1} and "
        "n.content_id > a.content_id"
    ).format(model.table, sql.Literal(1 - CUT))
    start = time.perf_counter()
    connection.execute(statement)
    return time.perf_counter() - start


def recall(connection: Connection, model: StoredModel, vectors: NDArray[np.float32]) -> float:
    """The share of NumPy's pairs of some rows that are remembered."""
    stored = vectors.astype(np.float16).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    rows = np.random.default_rng(3).choice(len(vectors), CHECKED, replace=False)
    found = np.argwhere(stored[rows] @ stored.T >= CUT)
    true = {(min(a, b), max(a, b)) for a, b in zip((rows[found[:, 0]] + 1).tolist(), (found[:, 1] + 1).tolist(), strict=True) if a != b}  # fmt: skip
    known = set(
        connection.execute(
            "select content_a, content_b from imgsearch.duplicate_pair where model_id = %s", [model.model_id]
        ).fetchall()
    )
    return len(true & known) / len(true)


def fill(connection: Connection, name: str, vectors: NDArray[np.float32]) -> StoredModel:
    model = add_model(connection, name, DIM)
    add_vectors(connection, model.table_name, vectors)
    build_index(connection, model, BuildOptions(machine_memory() // 4))
    return model


def main() -> dict[str, object]:
    """Measure the join, ours by both ways and as planned, a quarter of it, a new batch, and imagededup."""
    vectors = with_copies(ROWS)
    rows: list[dict[str, Any]] = []
    with fresh_database() as (url, connection), TemporaryDirectory() as folder:
        add_images(connection, ROWS)
        whole = fill(connection, "whole", vectors)
        bare = bare_join(connection, whole)
        rows.append({"what": "bare LATERAL join", "rows": ROWS, "seconds": bare})
        taken: dict[str, dict[str, Any]] = {}
        for method in ("index", "exact", "auto"):
            forget(connection, whole)
            taken[method] = scan(url, "whole", method)
            rows.append({"what": f"scan, {method}", "rows": ROWS, **taken[method], "recall": recall(connection, whole, vectors)})  # fmt: skip
        new = []
        for _ in range(3):
            forget(connection, whole, ROWS - BATCH)
            new.append(scan(url, "whole")["seconds"])
        rows.append({"what": "a new batch", "rows": BATCH, "seconds": float(np.median(new)),
                     "of the whole": float(np.median(new)) / taken["auto"]["seconds"]})  # fmt: skip
        part = fill(connection, "quarter", vectors[:QUARTER])
        for method in ("index", "auto"):
            forget(connection, part)
            quarter = scan(url, "quarter", method)
            growth = np.log(taken[method]["seconds"] / quarter["seconds"]) / np.log(ROWS / QUARTER)
            rows.append({"what": f"a quarter, {method}", "rows": QUARTER, **quarter, "exponent": float(growth)})
        few = fill(connection, "few", vectors[:PEER_ROWS])
        path = Path(folder) / "vectors.npy"
        np.save(path, vectors[:PEER_ROWS].astype(np.float16))
        rows.append({"what": "the peer's rows", "rows": PEER_ROWS, **scan(url, few.name)})
        peer = run_peer(
            peer_python("imagededup", "imagededup==0.3.3.post2", "timm"), "imagededup_search.py", str(path), str(CUT)
        )
        rows.append({"what": "imagededup's CNN search", "rows": PEER_ROWS, **peer})
    ratio = taken["auto"]["seconds"] / bare
    return report(
        "Duplicates: the time of all pairs of 100,000 x 768 over a bare LATERAL join", rows, ratio, "at most 2"
    )


if __name__ == "__main__":
    main()
