"""Exactly k, and the right ones: 100,000 clustered vectors, under every restriction, against exact search in NumPy."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.indexing.build import BuildOptions, build_index
from tests.support.builders import add_images, add_model, add_vectors, clustered
from tests.support.roles import drop_roles

ROWS, DIM, K = 100_000, 96, 10
SHARES = {"p50": 0.5, "p10": 0.1, "p1": 0.01, "p01": 0.001, "p001": 0.0001}
COPIES = 3000  # different files of one image: one vector
ANCHOR = 7  # near and far are seen from here
MARGIN = 1e-3  # half precision


@dataclass(frozen=True)
class World:
    """A filled database, its vectors as they are stored, and which images each restriction keeps."""

    url: str
    vectors: NDArray[np.float32]
    keeps: dict[str, NDArray[np.bool_]]

    def recall(self, connection: Connection, image: int, keep: str | None, options: str, *parameters: Any) -> float:
        """Of the true neighbours' distances; fails at once on a wrong number of answers or one that is not kept."""
        similarity = self.vectors @ self.vectors[image - 1]
        allowed = np.ones(ROWS, bool) if keep is None else self.keeps[keep].copy()
        allowed[image - 1] = False
        best = np.sort(similarity[allowed])[::-1][:K]
        found = connection.execute(
            f"select image_id, similarity from imgsearch.similar(%s, {K}{options})",
            [image, *parameters],  # type: ignore[arg-type]
        ).fetchall()
        assert len(found) == len(best)
        assert len({row[0] for row in found}) == len(found)
        assert all(allowed[row[0] - 1] for row in found)
        return sum(row[1] >= best[-1] - MARGIN for row in found) / max(len(best), 1)


@pytest.fixture(scope="module")
def world(server: str, admin: Connection, template: str) -> Iterator[World]:
    """Images with metadata random, near and far at each share; collections of each share; copies in one neighbourhood."""
    admin.execute(f"create database promises template {template} owner pgimgsearch")  # type: ignore[arg-type]
    url = f"postgresql://pgimgsearch@/promises?host={server}"
    rng = np.random.default_rng(11)
    made = clustered(ROWS, DIM)
    made[-COPIES:] = made[4242]
    stored = made.astype(np.float16).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    order = np.argsort(-(stored @ stored[ANCHOR - 1]), kind="stable")
    keeps = {}
    for name, share in SHARES.items():
        count = int(ROWS * share)
        for kind, chosen in (
            ("random", rng.permutation(ROWS)[:count]),
            ("near", order[:count]),
            ("far", order[-count:]),
        ):
            keeps[f"{kind}-{name}"] = np.isin(np.arange(ROWS), chosen)
    bounds = np.cumsum([int(ROWS * share) for share in list(SHARES.values())[1:]])
    for name, low, high in zip(SHARES, [bounds[-1], 0, *bounds[:-1]], [ROWS, *bounds], strict=True):
        keeps[f"collection-{name}"] = (np.arange(ROWS) >= low) & (np.arange(ROWS) < high)
    with connect(url) as connection:
        add_images(connection, ROWS)
        metadata = [json.dumps({name: 1 for name, keep in keeps.items() if keep[row]}) for row in range(ROWS)]
        connection.execute("create temporary table about (image_id bigint, metadata jsonb)")
        with connection.cursor().copy("copy about from stdin") as copy:
            for row, one in enumerate(metadata):
                copy.write_row((row + 1, one))
        connection.execute("insert into imgsearch.collection (name) select unnest(%s::text[])", [list(SHARES)])
        connection.execute(
            "update imgsearch.image i set metadata = a.metadata, group_key = 'sku-' || a.image_id / 5, collection_id = coalesce((select c.collection_id "
            "from imgsearch.collection c where a.metadata ? ('collection-' || c.name)), i.collection_id) "
            "from about a where a.image_id = i.image_id"
        )
        connection.execute("vacuum full analyze imgsearch.image")
        model = add_model(connection, "test", DIM)
        add_vectors(connection, model.table_name, made)
        build_index(connection, model, BuildOptions(1024))
        connection.execute("update imgsearch.model set has_text = true")
        connection.execute("select imgsearch.set_alias('text', 'test'), "
                           "imgsearch.cache_text('blue', imgsearch.embedding(9))")  # fmt: skip
    yield World(url, stored, keeps)
    admin.execute("drop database promises with (force)")


@pytest.fixture
def opened(world: World) -> Iterator[Connection]:
    with psycopg.connect(world.url, autocommit=True) as connection:
        yield connection


def queries(world: World) -> list[int]:
    """The anchor, its neighbours, and images drawn at random."""
    near = np.argsort(-(world.vectors @ world.vectors[ANCHOR - 1]))[1:4] + 1
    return [ANCHOR, *map(int, near), *map(int, np.random.default_rng(2).integers(1, ROWS - COPIES, 26))]


def test_without_a_restriction(world: World, opened: Connection) -> None:
    assert np.mean([world.recall(opened, image, None, "") for image in queries(world)]) >= 0.99


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("kind", ["random", "near", "far"])
def test_under_filters_of_every_share_and_place(world: World, opened: Connection, kind: str, name: str) -> None:
    keep = f"{kind}-{name}"
    told = json.dumps({keep: 1})
    assert np.mean([world.recall(opened, image, keep, ", filter => %s", told) for image in queries(world)]) >= 0.99


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("kind", ["random", "far"])
def test_among_listed_images(world: World, opened: Connection, kind: str, name: str) -> None:
    keep = f"{kind}-{name}"
    listed = (np.flatnonzero(world.keeps[keep]) + 1).tolist()
    assert (
        np.mean([world.recall(opened, image, keep, ", among => %s", listed) for image in queries(world)[:12]]) >= 0.99
    )


@pytest.mark.parametrize("name", SHARES)
def test_in_collections_of_every_share(world: World, opened: Connection, name: str) -> None:
    keep = f"collection-{name}"
    assert np.mean([world.recall(opened, image, keep, ", collection => %s", name) for image in queries(world)]) >= 0.99


def test_with_thousands_of_identical_pictures(world: World, opened: Connection) -> None:
    around = np.argsort(-(world.vectors[: ROWS - COPIES] @ world.vectors[4242]), kind="stable")[:40] + 1
    assert np.mean([world.recall(opened, int(image), None, "") for image in around]) >= 0.99
    keep = "random-p10"
    told = json.dumps({keep: 1})
    assert np.mean([world.recall(opened, int(i), keep, ", filter => %s", told) for i in around]) >= 0.99


@pytest.mark.parametrize("keep", ["random-p50", "far-p50", "random-p1"])
def test_under_row_level_security(world: World, opened: Connection, admin: Connection, keep: str) -> None:
    admin.execute("drop role if exists promised")
    admin.execute("create role promised login")
    opened.execute("select imgsearch.grant_access('promised')")
    opened.execute("alter table imgsearch.image enable row level security")
    opened.execute(f"create policy promised on imgsearch.image for select to promised using (metadata ? '{keep}')")  # type: ignore[arg-type]
    try:
        with psycopg.connect(world.url.replace("pgimgsearch@", "promised@"), autocommit=True) as tenant:
            visible = [image for image in range(1, 2000) if world.keeps[keep][image - 1]][:12]
            assert np.mean([world.recall(tenant, image, keep, "") for image in visible]) >= 0.99
    finally:
        opened.execute("drop policy promised on imgsearch.image")
        opened.execute("alter table imgsearch.image disable row level security")
        drop_roles(world.url, "promised")


@pytest.mark.parametrize(
    "query",
    [
        "select from imgsearch.similar(1)",
        "select from imgsearch.similar(1, k => 50, collapse => true, collection => 'p50')",
        "select from imgsearch.similar(1, after => 2)",
        "select from imgsearch.similar_to(imgsearch.embedding(1))",
        "select from imgsearch.search_text('blue')",
        "select from imgsearch.search_mixed(1, 'blue')",
        "select from imgsearch.search_hybrid('blue')",
        "select from imgsearch.similar_fused(1, models => array['test'])",
        "select from imgsearch.similar_groups(1)",
        "select from imgsearch.predict_label(1, 'random-p50')",
    ],
)
def test_the_index_is_used(opened: Connection, query: str) -> None:
    """By what the functions really did, where EXPLAIN does not look."""
    counts: Any = (
        "select pg_stat_get_xact_numscans('imgsearch.embedding_test_96_hnsw'::regclass), "
        "pg_stat_get_xact_numscans('imgsearch.embedding_test_96'::regclass)"
    )
    with opened.transaction():
        before = opened.execute(counts).fetchone()
        opened.execute(query)  # type: ignore[call-overload]
        after = opened.execute(counts).fetchone()
    assert before is not None
    assert after is not None
    assert after[0] > before[0]
    assert after[1] == before[1], "all vectors were read"


def test_with_a_gap_in_the_ids_that_hides_all_from_the_sample(world: World, opened: Connection) -> None:
    with opened.transaction(force_rollback=True):
        opened.execute("insert into imgsearch.image (image_id, content_id, collection_id, key, path) overriding system value "
                       "values (100000000000, 5, 1, 'far.jpg', 'far.jpg')")  # fmt: skip
        keep = "random-p50"
        found = [
            world.recall(opened, one, keep, ", filter => %s", json.dumps({keep: 1})) for one in queries(world)[:10]
        ]
    assert np.mean(found) >= 0.99
