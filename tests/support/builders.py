"""Vectors, images and models without files or networks, for tests and benchmarks that need many of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, insert_model
from pgimgsearch.embeddings.binary_copy import encode_rows


def clustered(rows: int, dim: int, seed: int = 1) -> NDArray[np.float32]:
    """Unit vectors around one centre for each 100 rows, as embeddings of real photos lie."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(rows // 100, 1), dim), dtype=np.float32)
    vectors = centres[rng.integers(len(centres), size=rows)]
    vectors += 0.8 * rng.standard_normal((rows, dim), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def lifelike(rows: int, dim: int, seed: int = 1) -> NDArray[np.float32]:
    """Unit vectors on a curved surface of 24 dimensions, with clusters of 100 rows that overlap, and a little noise.

    By nearest neighbours 3,000 of them have 17 dimensions (Levina and Bickel 2004), a little more than 3,000 real photos under
    MobileNetV2, which have 12; those of ``clustered`` have 90 within a cluster, and clusters share nothing, which is the
    hardest case for a graph.
    """
    surface, rng = np.random.default_rng(0), np.random.default_rng(seed)
    unfold = surface.standard_normal((24, dim), dtype=np.float32) / np.sqrt(np.float32(24))
    bend = surface.standard_normal(dim, dtype=np.float32)
    centres = rng.standard_normal((max(rows // 100, 1), 24), dtype=np.float32)
    places = centres[rng.integers(len(centres), size=rows)] + rng.standard_normal((rows, 24), dtype=np.float32)
    vectors = np.tanh(places @ unfold + bend) + 0.1 * rng.standard_normal((rows, dim), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def add_model(connection: Connection, name: str, dim: int, storage: str = "halfvec") -> StoredModel:
    """A stored model without an encoder."""
    return insert_model(
        connection,
        {"name": name, "dim": dim, "storage": storage, "backend": "timm", "checkpoint": name, "output": "pool",
         "preprocess": {}, "fingerprint": name, "has_text": False, "near": 0.95},
        aliases=["default"],
    )  # fmt: skip


def add_images(connection: Connection, rows: int) -> None:
    """So many images, each with a content of its own; content_id = image_id = 1 .. rows on a fresh database."""
    connection.execute("insert into imgsearch.collection (name) values ('bench')")
    connection.execute(
        "insert into imgsearch.content (sha256, pixel_hash, bytes, width, height, format) "
        "select sha256(n::text::bytea), decode(md5(n::text), 'hex'), 1, 1, 1, 'JPEG' from generate_series(1, %s) n order by n",
        [rows],
    )
    connection.execute(
        "insert into imgsearch.image (content_id, collection_id, key, path, metadata) "
        "select content_id, 1, content_id || '.jpg', content_id || '.jpg', jsonb_build_object('tenth', content_id % 10, 'hundredth', "
        "content_id % 100) from imgsearch.content order by content_id"
    )
    connection.execute("vacuum analyze imgsearch.image, imgsearch.content")


def add_vectors(connection: Connection, table: str, vectors: NDArray[Any], batch: int = 20_000, first: int = 0) -> None:
    """As ``copy_vectors``, and then the table is as it will be after a while: vacuumed, and known to the planner."""
    copy_vectors(connection, table, vectors, batch, first)
    connection.execute(f"vacuum analyze imgsearch.{table}")  # type: ignore[call-overload]


def copy_vectors(
    connection: Connection, table: str, vectors: NDArray[Any], batch: int = 20_000, first: int = 0
) -> None:
    """COPY vectors into a table of (content_id, embedding), for contents first + 1 .. first + n."""
    connection.execute(f"create temporary table load_{table} (content_id int4, like imgsearch.{table})".replace(  # type: ignore[call-overload]
        f", like imgsearch.{table}", f", embedding public.halfvec({vectors.shape[1]})"))  # fmt: skip
    for start in range(0, len(vectors), batch):
        part = vectors[start : start + batch].astype(np.float16)
        with connection.cursor().copy(f"copy load_{table} from stdin (format binary)") as copy:  # type: ignore[arg-type]
            copy.write(
                encode_rows(
                    np.arange(first + start + 1, first + start + len(part) + 1, dtype=np.int32), part, vectors.shape[1]
                )
            )
    connection.execute(f"insert into imgsearch.{table} select * from load_{table}")  # type: ignore[call-overload]
    connection.execute(f"drop table load_{table}")  # type: ignore[call-overload]
