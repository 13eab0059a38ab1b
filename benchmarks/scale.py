"""Scale: a build over the planner's estimate, recall, the time of a query, and clients at once, at 100,000 and 1,000,000 x 768.

``python -m benchmarks.scale [ROWS]``. Takes 25 minutes on 2 cores, 4 GB of memory and 10 GB of disk. The ratio is that of the median
query of a graph at the larger size, both with the effort that ``index build`` has found to reach a recall of 0.99.
"""

import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.clients import throughputs
from benchmarks.harness import fresh_database, report, times_ms
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.database.models import get_model
from pgimgsearch.indexing.build import BuildOptions, build_index, drop_index
from pgimgsearch.operations import plan
from pgimgsearch.operations.plan_rates import measure_rates, planned_model
from tests.support.builders import add_images, add_model, add_vectors, lifelike

PART, ROWS, DIM, QUERIES, CHECKED = 100_000, 1_000_000, 768, 300, 100
ROUNDING = 1e-3  # of a similarity in half precision


def main(rows: int = ROWS) -> dict[str, object]:
    """Fill, plan, build and ask, first with one part, then with all."""
    with fresh_database() as (url, connection):
        add_images(connection, rows)
        model = add_model(connection, "bench", DIM)
        kept: list[NDArray[np.float16]] = []
        found = []
        for size in (PART, rows):
            drop_index(connection, model)  # of the size before; a live one takes a few hundred rows a second
            while len(kept) * PART < size:
                vectors = lifelike(PART, DIM, seed=len(kept))
                add_vectors(connection, model.table_name, vectors, first=len(kept) * PART)
                kept.append(vectors.astype(np.float16))
            found.append(_measured(url, connection, "hnsw", kept))
        drop_index(connection, model)
        found.append(_measured(url, connection, "hnsw-binary", kept))
    ratio = found[1]["similar() p50, ms"] / found[0]["similar() p50, ms"]
    return report("Scale: the time of a query at 1M over one at 100,000", found, ratio, "below 3")


def _measured(url: str, connection: Connection, method: str, kept: list[NDArray[np.float16]]) -> dict[str, Any]:
    size = len(kept) * PART
    connection.execute("select imgsearch.set_index('bench', %s)", [method])
    model = get_model(connection, "bench")
    estimate = plan.build_seconds(
        size, measure_rates(connection, planned_model(connection, "bench"), remote=False, placement=None)
    )
    start = time.perf_counter()
    built = build_index(connection, model, BuildOptions(machine_memory() // 4))
    taken = time.perf_counter() - start  # with the measurement of recall, which the estimate leaves out
    assert built is not None
    ids = np.random.default_rng(3).integers(1, size, QUERIES).tolist()

    def ask(turn: int) -> list[Any]:
        return connection.execute("select * from imgsearch.similar(%s)", [ids[turn % QUERIES]]).fetchall()

    times_ms(ask, QUERIES)
    p50, p99 = np.percentile(times_ms(ask, QUERIES), [50, 99])
    rates = throughputs(url, size)
    return {
        "method": method, "rows": size, "estimate, s": estimate, "build, s": taken, "over the estimate": taken / (estimate or 1),
        "recall@10": recall(kept, ids[:CHECKED], [ask(turn) for turn in range(CHECKED)]),
        "similar() p50, ms": float(p50), "p99, ms": float(p99), "ef_search": built.ef_search, **rates,
    }  # fmt: skip


def recall(kept: list[NDArray[np.float16]], images: list[int], answers: list[list[tuple[Any, ...]]]) -> float:
    """The share of answers that are no further than the tenth of all products."""
    places = np.array(images) - 1
    questions = np.stack([kept[place // PART][place % PART] for place in places]).astype(np.float32)
    similarities = np.concatenate([questions @ part.astype(np.float32).T for part in kept], axis=1)
    similarities[np.arange(len(places)), places] = -1
    tenth = np.partition(similarities, -10, axis=1)[:, -10]
    found = [similarities[row, [answer[0] - 1 for answer in given]] for row, given in enumerate(answers)]
    return float(np.mean(np.stack(found) >= tenth[:, None] - ROUNDING))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
