"""Clusters: those of HDBSCAN over all distances, from neighbours alone; in a table and from the shell."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import get_model
from pgimgsearch.duplicates import cluster
from pgimgsearch.indexing.build import BuildOptions, build_index
from pgimgsearch.reporter import SILENT, Reporter
from tests.integration.test_duplicate_pairs import fill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def blobs() -> tuple[Any, Any]:
    """Ten groups of 12 to 30 vectors and 60 that belong nowhere; and which is which, -1 for none."""
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((10, 24))
    truth = np.repeat(np.arange(10), np.arange(12, 32, 2))
    vectors = np.concatenate(
        [centres[truth] + 0.15 * rng.standard_normal((len(truth), 24)), rng.standard_normal((60, 24))]
    )
    truth = np.concatenate([truth, np.full(60, -1)])
    order = rng.permutation(len(truth))
    vectors = vectors[order] / np.linalg.norm(vectors[order], axis=1, keepdims=True)
    return vectors.astype(np.float32), truth[order]


def test_groups_are_those_over_all_distances(
    connection: Connection, blobs: tuple[Any, Any], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, truth = blobs
    model = fill(connection, vectors)
    whole = HDBSCAN(min_cluster_size=8, min_samples=8, metric="precomputed", copy=True).fit(
        np.clip(1 - vectors @ vectors.T, 0, 2).astype(np.float64)
    )
    progress: list[int] = []
    exactly = cluster.cluster(connection, model, 15, 8, None, Reporter(progress=lambda done, _: progress.append(done)))
    assert progress[-1] == len(truth)
    assert adjusted_rand_score(whole.labels_, exactly.labels) > 0.9  # at their edges neighbours say less
    assert adjusted_rand_score(truth[truth >= 0], exactly.labels[truth >= 0]) > 0.95
    build_index(connection, model, BuildOptions(64))
    monkeypatch.setattr(cluster, "FEW", 0)
    by_index = cluster.cluster(connection, get_model(connection, "pairs"), 15, 8, None, SILENT)
    assert adjusted_rand_score(exactly.labels, by_index.labels) > 0.95

    with pytest.raises(psycopg.Error, match="there are no clusters of model pairs"):
        connection.execute("select * from imgsearch.clusters('pairs')")
    done = cli("--json", "cluster", "--least", "8")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    rows = connection.execute("select cluster, size, image_id, probability from imgsearch.clusters()").fetchall()
    assert len(rows) == len(truth)
    labels = {image: -1 if label is None else label for label, _, image, _ in rows}
    assert adjusted_rand_score(exactly.labels, [labels[n + 1] for n in range(len(truth))]) == 1
    sizes = {row["cluster"]: row["images"] for row in shown}
    assert sizes == {label: sum(value == label for value in labels.values()) for label in set(labels.values()) - {-1}}
    for row in shown:  # the most typical image is the first
        assert row["image_id"] == next(image for label, _, image, _ in rows if label == row["cluster"])
    # a copy of its pixels is in the same cluster
    connection.execute(
        "update imgsearch.content set pixel_hash = decode(md5('same'), 'hex') where content_id in (30, 31)"
    )
    assert cli("cluster", "--least", "8").returncode == 0
    both = connection.execute(
        "select count(distinct coalesce(cluster, -1)), count(*) from imgsearch.clusters() where image_id in (30, 31)"
    )
    assert both.fetchone() == (1, 2)
    connection.execute("update imgsearch.content set pixel_hash = null where content_id in (30, 31)")
    # twice, and after images went
    connection.execute("delete from imgsearch.image where image_id <= 20")
    connection.execute("delete from imgsearch.content where content_id <= 20")
    assert cli("cluster", "--least", "8").returncode == 0
    assert connection.execute("select count(*) from imgsearch.clusters()").fetchone() == (len(truth) - 20,)


def test_a_graph_in_pieces_and_of_equals() -> None:
    """Two crowds of equal images that know only themselves, and a third that knows nobody."""
    places = np.array(
        [[(n + 1) % 6, (n + 2) % 6] for n in range(6)]
        + [[6 + (n + 1) % 6, 6 + (n + 2) % 6] for n in range(6)]
        + [[-1, -1]]
    )
    labels, probabilities = cluster.group(places, np.where(places < 0, 2.0, 0.0), 4)
    assert len(set(labels[:6])) == 1
    assert len(set(labels[6:12])) == 1
    assert labels[0] != labels[6]
    assert labels[12] == -1
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_many_equal_pictures_are_a_group_by_the_index_too(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.random.default_rng(2).standard_normal((500, 16))
    vectors[:400] = vectors[0]
    model = fill(connection, vectors.astype(np.float32))
    build_index(connection, model, BuildOptions(64))
    monkeypatch.setattr(cluster, "FEW", 0)
    found = cluster.cluster(connection, get_model(connection, "pairs"), 15, 5, None, SILENT)
    assert np.bincount(found.labels[:400] + 1).max() > 300


def test_too_few(connection: Connection, blobs: tuple[Any, Any], cli: Callable[..., Any]) -> None:
    fill(connection, blobs[0][:10])
    done = cli("cluster")
    assert done.returncode == 5
    assert "too few to find groups of 5 by 15 neighbours" in done.stderr
