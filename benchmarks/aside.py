"""A large load: beside a live table, with its copy, its build and the swap, over the same rows put into the live graph."""

import time

from benchmarks.harness import add_images, add_model, add_vectors, copy_vectors, fresh_database, lifelike, report, sized
from pgimgsearch.database import models as store
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.indexing import build as index
from pgimgsearch.indexing import shadow_table as aside

ROWS, NEW, TRIED, DIM = sized(100_000), sized(30_000), sized(3_000), 768


def main() -> dict[str, object]:
    """Put some rows into the live graph, and take its pace for all; then the others beside it."""
    with fresh_database() as (_, connection):
        add_images(connection, ROWS + TRIED + NEW)
        model = add_model(connection, "bench", DIM)
        vectors = lifelike(ROWS + TRIED + NEW, DIM)
        add_vectors(connection, model.table_name, vectors[:ROWS])
        wish = index.Build(machine_memory() // 4)
        index.build(connection, model, wish)
        model = store.get_model(connection, "bench")
        start = time.perf_counter()
        copy_vectors(connection, model.table_name, vectors[ROWS : ROWS + TRIED], first=ROWS)
        live = (time.perf_counter() - start) / TRIED * NEW
        start = time.perf_counter()
        aside.begin(connection, model)
        beside = aside.find(connection, model)
        assert beside is not None
        copy_vectors(connection, beside.table_name, vectors[ROWS + TRIED :], first=ROWS + TRIED)
        built = aside.finish(connection, model, wish)
        taken = time.perf_counter() - start
        assert built is not None
    return report(
        "Aside: a load beside a live table over the same rows into its graph",
        [
            {
                "rows there": ROWS + TRIED, "new rows": NEW, "dim": DIM, "live, s": live, "live, rows/s": NEW / live,
                "beside, s": taken, "beside, rows/s": NEW / taken, "recall@10": built.recall,
            }
        ],
        taken / live,
        "below 1: the more comes, the lower",
    )  # fmt: skip


if __name__ == "__main__":
    main()
