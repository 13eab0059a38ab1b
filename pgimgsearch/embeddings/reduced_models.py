"""Models of fewer dimensions: fitted on stored vectors or on a sample of images, and filled from stored vectors."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.concurrency import batched
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, set_status
from pgimgsearch.embeddings.loaded_model import LoadedModel, rejection_reason
from pgimgsearch.embeddings.read_vectors import read_vectors
from pgimgsearch.embeddings.staging import create_staging, drop_staging, insert_staged, stage_vectors
from pgimgsearch.errors import ModelError
from pgimgsearch.models.encoder import Encoder
from pgimgsearch.models.reduction import Kind, Reduction, fit, recall_kept
from pgimgsearch.models.runtime.batches import Batches
from pgimgsearch.sources.limits import ImageLimits
from pgimgsearch.sources.sample import prepared_sample
from pgimgsearch.sources.source import Source

MIN_SAMPLE, MAX_SAMPLE = 1024, 20_000
QUERIES = 500
STAGING = "reduced_embeddings"
MIN_TO_MEASURE = 16


def sample_size(dim: int) -> int:
    """Vectors to fit and to measure with."""
    return max(MIN_SAMPLE, 4 * dim)


def stored_sample(connection: Connection, model: StoredModel) -> NDArray[np.float32]:
    """Vectors of a stored model, at random: (n, dim)."""
    rows = [vectors for _, vectors in read_vectors(connection, model, MAX_SAMPLE)]
    return np.concatenate(rows) if rows else np.zeros((0, model.dim), dtype=np.float32)


def embedded_sample(
    encoder: Encoder, output: str, batch_size: int, sources: Sequence[Source], dim: int, limits: ImageLimits
) -> NDArray[np.float32]:
    """Vectors of a sample of images: (n, dim)."""
    network = Batches(encoder, batch_size)
    pictures = prepared_sample(encoder, sources, sample_size(dim), limits)
    vectors = [network.embed(batch)[output] for batch in batched(pictures, batch_size, lambda _: 0, 1)]
    if not vectors:
        raise ModelError("there are no images to fit on", hint="give a folder that holds some")
    return np.concatenate(vectors).astype(np.float32)


def min_sample(dim: int, kind: Kind) -> int:
    """Vectors needed: three quarters have to be twice as many as dimensions; some are needed to measure with."""
    return MIN_TO_MEASURE if kind == "truncate" else max(MIN_TO_MEASURE, math.ceil(2 * dim * 4 / 3))


def fit_and_measure(vectors: NDArray[np.float32], dim: int, kind: Kind) -> tuple[Reduction, float]:
    """Fit on three quarters of some vectors, and measure with the others how many true neighbours are kept.

    Raises ModelError where there are too few.
    """
    shuffled = np.random.default_rng(dim).permutation(vectors[np.isfinite(vectors).all(1)])
    needed = min_sample(dim, kind)
    if len(shuffled) < needed:
        raise ModelError(
            f"{len(shuffled)} images are too few for {dim} dimensions by {kind}: {needed} are needed",
            hint="give more images, or a smaller --dim",
        )
    held_out = min(len(shuffled) // 4, QUERIES)
    reduction = fit(shuffled[held_out:], dim, kind)
    return reduction, recall_kept(shuffled, reduction, queries=held_out)


def fill_reduced_model(connection: Connection, reader: Connection, base: StoredModel, reduced: LoadedModel) -> int:
    """Give the reduced model a vector for every stored vector of the full one, without the images. Returns how many.

    ``reader`` is a second connection, as one cannot read and write a COPY at once.
    """
    total, model = 0, reduced.stored
    with connection.transaction():
        create_staging(connection, model, STAGING)
        for content_ids, vectors in read_vectors(reader, base):
            rows = reduced.storable({base.output: vectors})
            good = [number for number, row in enumerate(rows) if rejection_reason(row) is None]
            stage_vectors(connection, STAGING, content_ids[good], rows[good], model.dim)
            total += len(good)
        insert_staged(connection, STAGING, model.table)
        drop_staging(connection, STAGING)
        set_status(connection, model, base.status)
    return total
