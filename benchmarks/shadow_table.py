"""A large load: into a shadow table, with copy, build and swap, over the same rows inserted into the live graph."""

import time

from benchmarks.harness import fresh_database, report, sized
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.database.models import get_model
from pgimgsearch.indexing.build import BuildOptions, build_index
from pgimgsearch.indexing.embedding_table import shadow_table
from pgimgsearch.indexing.shadow_table import complete_load, create_shadow
from tests.support.builders import add_images, add_model, add_vectors, copy_vectors, lifelike

ROWS, NEW, TRIED, DIM = sized(100_000), sized(30_000), sized(3_000), 768


def main() -> dict[str, object]:
    """Put some rows into the live graph, and take its pace for all; then load the others into a shadow table."""
    with fresh_database() as (_, connection):
        add_images(connection, ROWS + TRIED + NEW)
        model = add_model(connection, "bench", DIM)
        vectors = lifelike(ROWS + TRIED + NEW, DIM)
        add_vectors(connection, model.table_name, vectors[:ROWS])
        request = BuildOptions(machine_memory() // 4)
        build_index(connection, model, request)
        model = get_model(connection, "bench")
        start = time.perf_counter()
        copy_vectors(connection, model.table_name, vectors[ROWS : ROWS + TRIED], first=ROWS)
        live = (time.perf_counter() - start) / TRIED * NEW
        start = time.perf_counter()
        create_shadow(connection, model)
        shadow = shadow_table(connection, model)
        assert shadow is not None
        copy_vectors(connection, shadow.name, vectors[ROWS + TRIED :], first=ROWS + TRIED)
        built = complete_load(connection, model, request)
        taken = time.perf_counter() - start
        assert built is not None
    return report(
        "Shadow table: the time of a load with copy, build and swap over that of the same rows into the live index",
        [
            {
                "rows there": ROWS + TRIED, "new rows": NEW, "dim": DIM, "live, s": live, "live, rows/s": NEW / live,
                "shadow, s": taken, "shadow, rows/s": NEW / taken, "recall@10": built.recall,
            }
        ],
        taken / live,
        "below 1, and lower for larger loads",
    )  # fmt: skip


if __name__ == "__main__":
    main()
