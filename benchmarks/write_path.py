"""Write path: staging, COPY and upsert of images and vectors over a bare binary COPY of the same vectors."""

import hashlib
import time
from collections.abc import Callable

import numpy as np
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from benchmarks.harness import fresh_database, report, sized
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.run import FILES_PER_CHUNK
from pgimgsearch.ingest.write import Writer
from pgimgsearch.sources.decode import ImageFacts
from pgimgsearch.sources.source import ScannedFile
from tests.support.builders import add_model, clustered

ROWS, DIM, ROUNDS = sized(20_000), 768, 5


def items(vectors: np.ndarray, turn: int) -> list[Item]:
    """Finished items, as the pipeline hands them to the writer."""
    made = []
    for number, vector in enumerate(vectors):
        digest = hashlib.sha256(f"{turn} {number}".encode()).digest()
        item = Item(ScannedFile(f"folder/{turn}/{number:06}.jpg", "", 1000), frozenset([0]), sha256=digest, size=1000)
        item.image = ImageFacts(digest[:16], 640, 480, "JPEG")
        item.vectors[0] = vector
        made.append(item)
    return made


def bare_vectors(connection: Connection, vectors: np.ndarray) -> float:
    """Seconds of one COPY of ids and vectors alone, row by row with pgvector's adapter, as its loading example does."""
    connection.execute("drop table if exists bare_vector")
    connection.execute(f"create table bare_vector (id int4 primary key, embedding halfvec({DIM}))")  # type: ignore[call-overload]
    rows = [(number, HalfVector(vector)) for number, vector in enumerate(vectors)]
    start = time.perf_counter()
    with connection.cursor().copy("copy bare_vector from stdin (format binary)") as copy:
        copy.set_types(["int4", "halfvec"])
        for row in rows:
            copy.write_row(row)
    return time.perf_counter() - start


def bare_rows(connection: Connection, made: list[Item], first_id: int) -> float:
    """Seconds of bare COPYs of all that we write, straight into our tables, in one transaction a chunk."""
    start = time.perf_counter()
    for first in range(0, len(made), FILES_PER_CHUNK):
        with connection.transaction():
            for name, (columns, types, row) in BARE.items():
                statement = f"copy imgsearch.{name} ({columns}) from stdin (format binary)"
                with connection.cursor().copy(statement) as copy:  # type: ignore[arg-type]
                    copy.set_types(types.split())
                    for number, item in enumerate(made[first : first + FILES_PER_CHUNK], first_id + first):
                        copy.write_row(row(number, item))
    return time.perf_counter() - start


# table -> columns, types, and the row of an item
BARE: dict[str, tuple[str, str, Callable[[int, Item], tuple[object, ...]]]] = {
    "content": (
        "content_id, sha256, pixel_hash, bytes, width, height, format",
        "int8 bytea bytea int8 int4 int4 text",
        lambda number, item: (number, item.sha256, item.sha256[:16], item.size, 640, 480, "JPEG"),
    ),
    "image": (
        "image_id, content_id, collection_id, path",
        "int8 int8 int4 text",
        lambda number, item: (number, number, 1, item.file.path),
    ),
    "embedding_bench_768": (
        "content_id, embedding",
        "int8 halfvec",
        lambda number, item: (number, HalfVector(item.vectors[0])),
    ),
}


def ours(writer: Writer, made: list[Item]) -> float:
    """The writer's chunks, each a transaction: content, image, vector, failures and counts."""
    counts = Counts(["bench"])
    start = time.perf_counter()
    for first in range(0, len(made), FILES_PER_CHUNK):
        writer.write(made[first : first + FILES_PER_CHUNK], counts)
    return time.perf_counter() - start


def main() -> dict[str, object]:
    """Interleave the three in rounds and compare their medians."""
    with fresh_database() as (_, connection):
        model: StoredModel = add_model(connection, "bench", DIM)
        connection.execute("insert into imgsearch.collection (name) values ('bench')")
        connection.execute("insert into imgsearch.ingest_run (source, models) values ('bench', '{bench}')")
        writer = Writer(Session(connection), 1, 1, [model], [model.table])
        vectors = clustered(ROWS, DIM).astype(np.float16)
        register_vector(connection)
        rounds = []
        for turn in range(ROUNDS):
            bare, staged = items(vectors, 2 * turn), items(vectors, 2 * turn + 1)
            rows = bare_rows(connection, bare, (turn + 1) * 1_000_000)
            rounds.append((bare_vectors(connection, vectors), rows, ours(writer, staged)))
    vectors_s, rows_s, ours_s = (float(np.median(column)) for column in zip(*rounds, strict=True))
    row = {
        "bare COPY of the vectors alone, rows/s": ROWS / vectors_s,
        "bare COPY of the same rows, rows/s": ROWS / rows_s,
        "staging, COPY, upsert, rows/s": ROWS / ours_s,
        "over the vectors alone": vectors_s / ours_s,
    }
    return report(
        "Write path: rows per second of our writer over a bare binary COPY of the same rows",
        [row],
        rows_s / ours_s,
        "at least 0.7",
    )


if __name__ == "__main__":
    main()
