"""Groups of like images: HDBSCAN over the graph of nearest neighbours."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.duplicates.calibration_data import representatives
from pgimgsearch.embeddings.read_vectors import read_vectors
from pgimgsearch.embeddings.similarity import similarity, unit_rows
from pgimgsearch.errors import ModelError
from pgimgsearch.reporter import Reporter

FEW = 20_000  # vectors that are compared with all, which takes seconds
BLOCK = 500
TILE = 2048
FARTHEST = 2.0  # no distance is larger: what joins the parts of a graph that is not connected
LEAST = 1e-6  # a distance of zero would be no edge


@dataclass(frozen=True, slots=True)
class Clusters:
    """Contents with their cluster, -1 for none, and how typical they are for it, 0 to 1; all (n,)."""

    contents: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def cluster(
    connection: Connection, model: StoredModel, neighbours: int, least: int, collection: str | None, reporter: Reporter
) -> Clusters:
    """Cluster the images that a model has vectors of into groups of at least ``least``; stores nothing."""
    contents = representatives(connection, model, collection)
    if len(contents) <= max(neighbours, least):
        raise ModelError(
            f"{model.name} has vectors of {len(contents)} images: too few to find groups of {least} by {neighbours} "
            "neighbours",
            hint=f"ingest more: pgimgsearch ingest DIR --model {model.name}; or give smaller --neighbours and --least",
        )
    if len(contents) <= FEW or model.index_method == "none":
        places, distances = _exactly(connection, model, contents, neighbours, reporter)
    else:
        places, distances = _through_index(connection, model, contents, neighbours, reporter)
    labels, probabilities = group(places, distances, least)
    return Clusters(contents, labels, probabilities)


def group(
    places: NDArray[np.int64], distances: NDArray[np.float64], least: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels and probabilities of n points by their k nearest neighbours: ``places`` and ``distances`` are (n, k).

    A place of -1 is no neighbour.
    """
    try:
        from scipy.sparse import coo_array, csr_array
        from scipy.sparse.csgraph import connected_components
        from sklearn.cluster import HDBSCAN
    except ImportError as error:
        raise ModelError("clusters need scikit-learn", hint="run: pip install 'pgimgsearch[analysis]'") from error
    number, k = places.shape
    rows, columns, values = np.repeat(np.arange(number), k), places.ravel(), np.maximum(distances.ravel(), LEAST)
    there = columns >= 0
    graph = coo_array((values[there], (rows[there], columns[there])), (number, number)).tocsr()
    both = graph.maximum(graph.T)  # an edge that one side alone has counts for both
    parts, part = connected_components(both, directed=False)
    first = np.unique(part, return_index=True)[1]
    links = coo_array((np.full(parts - 1, FARTHEST), (np.zeros(parts - 1, np.int64), first[1:])), both.shape).tocsr()
    joined = csr_array(both + links + links.T)
    joined.indices, joined.indptr = joined.indices.astype(np.int32), joined.indptr.astype(np.int32)
    fewest = int(np.diff(joined.indptr).min())
    found = HDBSCAN(
        min_cluster_size=least, min_samples=max(1, min(least, k, fewest)), metric="precomputed", copy=False
    ).fit(joined)
    return found.labels_.astype(np.int64), np.nan_to_num(found.probabilities_)


def save(connection: Connection, model: StoredModel, clusters: Clusters) -> None:
    """Replace the model's clusters."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("delete from imgsearch.cluster where model_id = %s", [model.model_id])
        cursor.execute(
            "insert into imgsearch.cluster (content_id, model_id, cluster, probability) "
            "select c.content_id, %s, nullif(n.cluster, -1), n.probability "
            "from unnest(%s::bigint[], %s::integer[], %s::real[]) as n (content_id, cluster, probability) "
            "join imgsearch.content c on c.content_id = n.content_id",
            [model.model_id, clusters.contents.tolist(), clusters.labels.tolist(), clusters.probabilities.tolist()],
        )


def _exactly(
    connection: Connection, model: StoredModel, contents: NDArray[np.int64], k: int, reporter: Reporter
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    parts = [(ids, unit_rows(vectors, model.storage)) for ids, vectors in read_vectors(connection, model)]
    ids, vectors = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(ids)
    chosen = order[np.minimum(np.searchsorted(ids[order], contents), len(ids) - 1)]
    rows = vectors[chosen]  # of one that was removed meanwhile another's, which is not saved
    places, distances = np.empty((len(rows), k), np.int64), np.empty((len(rows), k))
    for start in range(0, len(rows), TILE):
        tile = similarity(rows[start : start + TILE] @ rows.T, model.storage)
        tile[np.arange(len(tile)), np.arange(start, start + len(tile))] = -np.inf
        nearest = np.argpartition(-tile, k - 1, axis=1)[:, :k]
        places[start : start + TILE] = nearest
        distances[start : start + TILE] = 1 - np.take_along_axis(tile, nearest, axis=1)
        reporter.progress(start + len(tile), len(rows))
    return places, distances


def _through_index(
    connection: Connection, model: StoredModel, contents: NDArray[np.int64], k: int, reporter: Reporter
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    places, distances = np.full((len(contents), k), -1), np.full((len(contents), k), FARTHEST)
    for start in range(0, len(contents), BLOCK):
        rows = connection.execute(
            "select n.content_id, n.neighbour, n.distance from imgsearch.model m, "
            "imgsearch._neighbours(m, %s, %s) n where m.model_id = %s order by 1, 3",
            [contents[start : start + BLOCK].tolist(), k, model.model_id],
        ).fetchall()
        found = np.array(rows, np.float64).reshape(-1, 3)
        row, neighbour = (np.searchsorted(contents, found[:, n].astype(np.int64)) for n in (0, 1))
        known = (neighbour < len(contents)) & (contents[np.minimum(neighbour, len(contents) - 1)] == found[:, 1])
        row, neighbour, distance = row[known], neighbour[known], found[known, 2]
        column = np.arange(len(row)) - np.searchsorted(row, row)
        fits = column < k  # one more came where the image itself was not among its nearest
        places[row[fits], column[fits]], distances[row[fits], column[fits]] = neighbour[fits], distance[fits]
        reporter.progress(min(start + BLOCK, len(contents)), len(contents))
    return places, distances
