"""Index methods: what each takes to build, holds and finds, by effort, beside FAISS and LanceDB on the same vectors.

Peers search in their own process, ours through Postgres from another; each recall is over exact search. Needs PyPI for the
peers. ``python -m benchmarks.index_methods``.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness import fresh_database, peer_python, report, run_peer, sized
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.database.models import get_model
from pgimgsearch.indexing.build import BuildOptions, build_index, drop_index
from pgimgsearch.indexing.recall import measure_recall
from pgimgsearch.models.runtime.cpu_parallel import cores
from tests.support.builders import add_images, add_model, add_vectors, clustered

ROWS, DIM, QUERIES = sized(100_000), 768, 200
EFFORTS = {"hnsw": [40, 100, 200], "hnsw-binary": [40, 100, 200]}
METHODS = {"halfvec": ("hnsw", "hnsw-binary"), "vector": ("hnsw",)}
PEERS = {"faiss": ("faiss-cpu", "numpy"), "lancedb": ("lancedb", "numpy")}


def main() -> dict[str, object]:
    """Ours, then the peers, one after the other; the ratio is that of the build of bits to that of a graph of vectors."""
    vectors = clustered(ROWS, DIM)
    with fresh_database() as (_, connection):
        add_images(connection, ROWS)
        rows = [row for storage, methods in METHODS.items() for row in ours(connection, storage, vectors, methods)]
    with TemporaryDirectory() as name:
        np.save(Path(name) / "vectors.npy", vectors)
        asked = np.random.default_rng(3).choice(ROWS, QUERIES, replace=False)
        np.save(Path(name) / "queries.npy", vectors[asked])
        rows += peers(Path(name))
    seconds = {row["index"]: row["build, s"] for row in rows}
    ratio = seconds["hnsw-binary of halfvec"] / seconds["hnsw of halfvec"]
    return report("Index methods: the build time of bits over that of a graph of vectors", rows, ratio, "below 0.8")


def ours(connection: Connection, storage: str, vectors: Any, methods: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """One method after the other on one table."""
    model = add_model(connection, f"bench-{storage}", DIM, storage)
    add_vectors(connection, model.table_name, vectors)
    for method in methods:
        connection.execute("select imgsearch.set_index(%s, %s)", [model.name, method])
        drop_index(connection, model)
        request = BuildOptions(machine_memory() // 4)
        start = time.perf_counter()
        built = build_index(connection, get_model(connection, model.name), request)
        seconds = time.perf_counter() - start  # with the measurement of recall
        assert built is not None
        model = get_model(connection, model.name)
        found = measure_recall(connection, model, EFFORTS[method], sample=QUERIES)
        size = connection.execute(
            "select pg_relation_size(%s)",
            [f"imgsearch.{model.table_name}_{'bits' if method == 'hnsw-binary' else 'hnsw'}"],
        ).fetchone()
        assert size is not None
        yield {
            "index": f"{method} of {storage}", "build, s": seconds, "MB": size[0] / 1e6, "ef_search": built.ef_search,
            "by effort": told((row["ef_search"], row["recall"], row["milliseconds"]) for row in found),
        }  # fmt: skip


def peers(folder: Path) -> Iterator[dict[str, Any]]:
    """Those that can be installed; the others are named."""
    for name, requirements in PEERS.items():
        try:
            python = peer_python(name, *requirements)
            files = str(folder / "vectors.npy"), str(folder / "queries.npy")
            found = run_peer(python, "vector_search.py", name, *files, str(cores()))
        except subprocess.CalledProcessError as error:
            print(f"{name} could not run: {error.stderr or error}", file=sys.stderr)
            continue
        yield {"index": f"{name} HNSW", "build, s": found["seconds"],
               "by effort": told((row["effort"], row["recall"], row["ms"]) for row in found["rows"])}  # fmt: skip


def told(found: Any) -> str:
    """Effort, recall@10 and milliseconds of a query."""
    return " ".join(f"{effort}: {share:.4f} at {ms:.2f} ms" for effort, share, ms in found)


if __name__ == "__main__":
    main()
