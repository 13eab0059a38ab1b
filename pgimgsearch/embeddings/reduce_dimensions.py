"""Models of fewer dimensions: fitted on stored vectors or on a sample of pictures, and filled from stored vectors."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgimgsearch.concurrency import batched
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings.binary_copy import encode_rows
from pgimgsearch.embeddings.loaded_model import LoadedModel, why_not
from pgimgsearch.embeddings.read_vectors import read_vectors
from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import Encoder
from pgimgsearch.models.reduction import Kind, Reduction, fit, recall_kept
from pgimgsearch.models.runtime.batches import Batches
from pgimgsearch.sources.limits import ImageLimits
from pgimgsearch.sources.sample import prepared_sample
from pgimgsearch.sources.source import Source

LEAST_SAMPLE, LARGEST_SAMPLE = 1024, 20_000
QUERIES = 500
LEAST_TO_MEASURE = 16


def sample_size(dim: int) -> int:
    """Vectors to fit and to measure with."""
    return max(LEAST_SAMPLE, 4 * dim)


def stored_sample(connection: Connection, model: StoredModel) -> NDArray[np.float32]:
    """Vectors of a stored model, at random: (n, dim)."""
    rows = [vectors for _, vectors in read_vectors(connection, model, LARGEST_SAMPLE)]
    return np.concatenate(rows) if rows else np.zeros((0, model.dim), dtype=np.float32)


def embedded_sample(
    encoder: Encoder, output: str, batch_size: int, sources: Sequence[Source], dim: int, limits: ImageLimits
) -> NDArray[np.float32]:
    """Vectors of a sample of pictures: (n, dim)."""
    network = Batches(encoder, batch_size)
    pictures = prepared_sample(encoder, sources, sample_size(dim), limits)
    vectors = [network.embed(batch)[output] for batch in batched(pictures, batch_size, lambda _: 0, 1)]
    if not vectors:
        raise ModelError("there are no pictures to fit on", hint="give a folder that holds some")
    return np.concatenate(vectors).astype(np.float32)


def least_sample(dim: int, kind: Kind) -> int:
    """Vectors needed: three quarters have to be twice as many as dimensions; some are needed to measure with."""
    return LEAST_TO_MEASURE if kind == "truncate" else max(LEAST_TO_MEASURE, math.ceil(2 * dim * 4 / 3))


def measured(vectors: NDArray[np.float32], dim: int, kind: Kind) -> tuple[Reduction, float]:
    """Fit on three quarters of some vectors, and measure with the others how many true neighbours are kept.

    Raises ModelError where there are too few.
    """
    shuffled = np.random.default_rng(dim).permutation(vectors[np.isfinite(vectors).all(1)])
    needed = least_sample(dim, kind)
    if len(shuffled) < needed:
        raise ModelError(
            f"{len(shuffled)} pictures are too few for {dim} dimensions by {kind}: {needed} are needed",
            hint="give more pictures, or a smaller --dim",
        )
    held_out = min(len(shuffled) // 4, QUERIES)
    reduction = fit(shuffled[held_out:], dim, kind)
    return reduction, recall_kept(shuffled, reduction, queries=held_out)


def fill(connection: Connection, reader: Connection, base: StoredModel, reduced: LoadedModel) -> int:
    """Give the reduced model a vector for every stored vector of the full one, without the pictures. Returns how many.

    ``reader`` is a second connection, as one cannot read and write a COPY at once.
    """
    kind = sql.SQL(f"{vector_schema(connection)}.{reduced.stored.storage}")
    total = 0
    with connection.transaction():
        connection.execute(
            sql.SQL("create temporary table filling (content_id int8, embedding {}({})) on commit drop").format(
                kind, sql.Literal(reduced.stored.dim)
            )
        )
        for content_ids, vectors in read_vectors(reader, base):
            rows = reduced.storable({base.output: vectors})
            good = [number for number, row in enumerate(rows) if why_not(row) is None]
            with connection.cursor().copy("copy filling from stdin (format binary)") as copy:
                copy.write(encode_rows(content_ids[good], rows[good], reduced.stored.dim))
            total += len(good)
        # what was removed meanwhile is left out
        insert = (
            "insert into {} select f.content_id, f.embedding "
            "from filling f join imgsearch.content c using (content_id) order by f.content_id on conflict do nothing"
        )
        connection.execute(sql.SQL(insert).format(reduced.stored.table))
        store.set_status(connection, reduced.stored, base.status)
    return total
