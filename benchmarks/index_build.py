"""Index build: HNSW over our halfvec column over pgvector's default vector column, same rows, memory and workers."""

import time

import numpy as np
from psycopg import sql

from benchmarks.harness import fresh_database, report, sized
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.indexing.build import BuildOptions, build_index, drop_index
from pgimgsearch.indexing.methods import build_memory, index_spec
from tests.support.builders import add_images, add_model, add_vectors, clustered

ROWS, DIM = sized(50_000), 768


def main() -> dict[str, object]:
    """Build one after the other, twice, in opposite order."""
    with fresh_database() as (_, connection):
        add_images(connection, ROWS)
        model = add_model(connection, "bench", DIM)
        vectors = clustered(ROWS, DIM)
        add_vectors(connection, model.table_name, vectors)
        connection.execute(f"create table plain (content_id bigint primary key, embedding vector({DIM}))")  # type: ignore[call-overload]
        connection.execute(
            sql.SQL("insert into plain select content_id, embedding::vector from {}").format(model.table)
        )
        connection.execute("vacuum analyze plain")

        def default() -> float:
            connection.execute("drop index if exists plain_hnsw")
            memory = (
                build_memory(ROWS, index_spec(model), "hnsw", machine_memory() // 4) * 2
            )  # a vector takes twice a halfvec
            connection.execute("select set_config('maintenance_work_mem', %s, false)", [f"{memory}MB"])
            start = time.perf_counter()
            connection.execute("create index plain_hnsw on plain using hnsw (embedding vector_cosine_ops)")
            return time.perf_counter() - start

        def ours() -> float:
            drop_index(connection, model)
            start = time.perf_counter()
            build_index(connection, model, BuildOptions(machine_memory() // 4))
            return time.perf_counter() - start

        taken = [(default(), ours())]
        second = ours()
        taken.append((default(), second))
        sizes = connection.execute(
            "select pg_relation_size('plain_hnsw') / 1048576.0, pg_relation_size(%s) / 1048576.0",
            [f"imgsearch.{model.table_name}_hnsw"],
        ).fetchone()
    assert sizes is not None
    default_s, ours_s = (float(np.median(column)) for column in zip(*taken, strict=True))
    row = {"vector column, s": default_s, "ours, s": ours_s, "vector index, MB": float(sizes[0]), "ours, MB": float(sizes[1]),
           "rows": ROWS, "dim": DIM}  # fmt: skip
    return report(
        "Index build: the time of ours over pgvector's default vector column", [row], ours_s / default_s, "at most 0.65"
    )


if __name__ == "__main__":
    main()
