"""The search functions, against NumPy's exact answers on the same vectors."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import get_model
from pgimgsearch.indexing.build import BuildOptions, build_index
from tests.conftest import filled
from tests.support.builders import add_images, add_model, add_vectors, clustered

ROWS, DIM = 3000, 32


@pytest.fixture(scope="module")
def template(admin: Connection, server: str, template: str) -> Iterator[str]:
    yield from filled(admin, server, template, fill)


def fill(connection: Connection) -> None:
    """3,000 images with metadata tenth and hundredth, their vectors indexed."""
    add_images(connection, ROWS)
    model = add_model(connection, "test", DIM)
    add_vectors(connection, model.table_name, clustered(ROWS, DIM))
    build_index(connection, model, BuildOptions(64))


@pytest.fixture
def vectors() -> NDArray[np.float32]:
    """The stored vectors, rounded as halfvec rounds them."""
    return clustered(ROWS, DIM).astype(np.float16).astype(np.float32)


def nearest(vectors: NDArray[np.float32], image_id: int, k: int, keep: NDArray[Any] | None = None) -> list[int]:
    """The true neighbours' image_ids, nearest first."""
    query = vectors[image_id - 1]
    similarity = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    similarity[image_id - 1] = -2
    if keep is not None:
        similarity[~keep] = -2
    return [int(i) + 1 for i in np.argsort(-similarity, kind="stable")[:k] if similarity[i] > -2]


def ids(connection: Connection, query: str, *parameters: Any) -> list[int]:
    return [row[0] for row in connection.execute(query, parameters).fetchall()]  # type: ignore[call-overload]


def overlap(found: list[int], true: list[int]) -> float:
    return len(set(found) & set(true)) / len(true)


def test_similar_finds_the_true_neighbours(connection: Connection, vectors: NDArray[np.float32]) -> None:
    for image in (1, 500, 2999):
        true = nearest(vectors, image, 10)
        assert ids(connection, "select image_id from imgsearch.similar(%s, exact => true)", image) == true
        assert overlap(ids(connection, "select image_id from imgsearch.similar(%s)", image), true) >= 0.9
        text = json.dumps(vectors[image - 1].tolist())
        assert ids(connection, "select image_id from imgsearch.similar_to(%s::vector, 11, exact => true)", text) == [
            image,
            *true,
        ]
    row = connection.execute(
        "select similarity, path, collection from imgsearch.similar(1, 1, exact => true)"
    ).fetchone()
    best = nearest(vectors, 1, 1)[0]
    assert row is not None
    assert row[0] == pytest.approx(float(vectors[0] @ vectors[best - 1]), abs=2e-3)
    assert row[1:] == (f"{best}.jpg", "bench")


@pytest.mark.parametrize(("key", "share"), [("tenth", 10), ("hundredth", 100)])
def test_filters_cost_neither_answers_nor_the_right_ones(
    connection: Connection, vectors: NDArray[np.float32], key: str, share: int
) -> None:
    numbers = np.arange(1, ROWS + 1)
    for image in (3, 777):
        found = ids(
            connection,
            "select image_id from imgsearch.similar(%s, k => 20, filter => %s)",
            image,
            json.dumps({key: 7}),
        )
        assert found == nearest(vectors, image, 20, numbers % share == 7)


def test_restrictions_combine(connection: Connection, vectors: NDArray[np.float32]) -> None:
    among = list(range(1, 200))
    keep = np.isin(np.arange(1, ROWS + 1), among) & (np.arange(1, ROWS + 1) % 10 == 4)
    query = "select image_id from imgsearch.similar(9, k => 30, among => %s, filter => %s, collection => 'bench')"
    assert ids(connection, query, among, '{"tenth": 4}') == nearest(vectors, 9, 30, keep)
    limited = ids(
        connection, "select image_id from imgsearch.similar(9, k => 50, min_similarity => 0.5, exact => true)"
    )
    all_fifty = connection.execute(
        "select image_id, similarity from imgsearch.similar(9, k => 50, exact => true)"
    ).fetchall()
    assert limited == [row[0] for row in all_fifty if row[1] >= 0.5]


def test_k_beyond_what_an_index_can_give_is_exact(connection: Connection, vectors: NDArray[np.float32]) -> None:
    assert ids(connection, "select image_id from imgsearch.similar(5, k => 1500)") == nearest(vectors, 5, 1500)


def test_all_come_back_when_fewer_than_k_exist(connection: Connection, vectors: NDArray[np.float32]) -> None:
    connection.execute(
        "delete from imgsearch.image where image_id > 20"
    )  # the contents stay, as an application leaves them
    assert len(ids(connection, "select image_id from imgsearch.similar(1, k => 50)")) == 19


def test_the_length_of_a_query_does_not_matter(connection: Connection, vectors: NDArray[np.float32]) -> None:
    for scale in (1e-9, 1.0, 1e6):
        text = json.dumps((vectors[0].astype(np.float64) * scale).tolist())
        rows = connection.execute(
            "select image_id, similarity from imgsearch.similar_to(%s::vector, 3, exact => true)", [text]
        ).fetchall()
        assert [row[0] for row in rows] == [1, *nearest(vectors, 1, 2)]
        assert rows[0][1] == pytest.approx(1, abs=2e-3)


def test_a_partly_embedded_model_answers_with_what_it_has(connection: Connection, vectors: NDArray[np.float32]) -> None:
    model = add_model(connection, "second", DIM)
    add_vectors(connection, model.table_name, vectors[:5])
    build_index(connection, model, BuildOptions(64))
    connection.execute("set imgsearch.exact_limit = 100")
    assert len(ids(connection, "select image_id from imgsearch.similar(1, model => 'second')")) == 4
    assert len(ids(connection, "select image_id from imgsearch.similar(1, model => 'second', filter => '{}')")) == 4


def test_no_setting_leaks(connection: Connection, vectors: NDArray[np.float32]) -> None:
    names = ["hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples", "enable_seqscan"]
    connection.execute("select '[1]'::vector")
    connection.execute("set hnsw.ef_search = 77")
    with connection.transaction():
        before = [connection.execute(f"show {name}").fetchone() for name in names]
        ids(connection, "select image_id from imgsearch.similar(1)")
        ids(connection, "select image_id from imgsearch.similar(1, filter => '{\"tenth\": 1}')")
        ids(connection, "select image_id from imgsearch.similar(1, after => 3)")
        ids(connection, "select imgsearch.recall('test', sample => 3)")
        with pytest.raises(psycopg.Error), connection.transaction():
            ids(connection, "select image_id from imgsearch.similar(1, filter => '3')")
        assert [connection.execute(f"show {name}").fetchone() for name in names] == before


def test_copies_follow_each_other_or_collapse(connection: Connection, vectors: NDArray[np.float32]) -> None:
    best = nearest(vectors, 1, 1)[0]
    connection.execute(
        "insert into imgsearch.image (content_id, collection_id, key, path) "
        "select content_id, 1, 'copy-' || n, 'copy-' || n from imgsearch.image, generate_series(1, 3) n where image_id = %s", [best]
    )  # fmt: skip
    copies = ids(connection, "select image_id from imgsearch.image where starts_with(path, 'copy-') order by 1")
    found = ids(connection, "select image_id from imgsearch.similar(1, k => 6, exact => true)")
    assert found[:4] == [best, *copies]
    assert ids(
        connection, "select image_id from imgsearch.similar(1, k => 6, collapse => true, exact => true)"
    ) == nearest(vectors, 1, 6)
    assert ids(connection, "select image_id from imgsearch.similar(%s, k => 3)", best) == copies


def test_the_index_is_used(connection: Connection, vectors: NDArray[np.float32]) -> None:
    """A plan test: what the function runs, in its exact form, is an index scan in order."""
    model = get_model(connection, "test")
    lateral = "cross join lateral (select from imgsearch.image i where i.content_id = e.content_id and i.metadata @> '{\"tenth\": 1}' limit 1) v"
    for extra in ("", lateral):
        query = sql.SQL(
            "explain (format json) select e.content_id from {} e {} order by e.embedding operator(public.<=>) %s::halfvec(32) limit 11"
        )
        row = connection.execute(
            query.format(model.table, sql.SQL(extra)), [json.dumps(vectors[0].tolist())]
        ).fetchone()  # type: ignore[arg-type]
        assert row is not None
        assert f'"Index Name": "{model.table_name}_hnsw"' in json.dumps(row[0])
        assert '"Node Type": "Sort"' not in json.dumps(row[0])


@pytest.mark.parametrize(
    ("query", "state", "hint"),
    [
        ("select * from imgsearch.similar(1, model => 'nothing')", "PI001", "known models: test"),
        ("select * from imgsearch.similar(999999)", "PI004", "imgsearch.image"),
        ("select * from imgsearch.similar(null)", "PI004", "imgsearch.image"),
        ("select * from imgsearch.similar(3001)", "PI003", "pgimgsearch ingest"),
        ("select * from imgsearch.similar_to('[1,2,3]'::vector)", "PI002", "same model"),
        ("select * from imgsearch.similar_to(null::vector)", "PI002", "same model"),
        ("select * from imgsearch.similar_to(array_fill(0, array[32])::vector)", "PI002", "vector of an image"),
        ("select * from imgsearch.similar(1, k => 2147483647)", "PI008", "after =>"),
        ("select * from imgsearch.duplicates_of(3001)", "PI003", "pgimgsearch ingest"),
        ("select imgsearch.set_alias('text', 'test')", "PI007", "can"),
        ("select * from imgsearch.similar_to_bits(b'101')", "PI002", "same model"),
        ("select imgsearch.embedding_bits(1)", "PI002", "imgsearch.embedding()"),
        ("select * from imgsearch.similar(1, collection => 'nowhere')", "PI005", "imgsearch.collection"),
        ("select * from imgsearch.similar(1, k => 0)", "PI008", "k =>"),
        ("select * from imgsearch.search_text('red', model => 'test')", "PI007", "models that can"),
        ("select * from imgsearch.similar(1, after => 3001)", "PI003", "pgimgsearch ingest"),
    ],
)
def test_errors_have_a_state_and_a_way_out(
    connection: Connection, vectors: NDArray[np.float32], query: str, state: str, hint: str
) -> None:
    connection.execute(
        "insert into imgsearch.content (sha256, pixel_hash, bytes, width, height, format) select sha256('x'), null, 1, 1, 1, 'PNG'"
    )
    connection.execute(
        "insert into imgsearch.image (content_id, collection_id, key, path) values (3001, 1, 'new', 'not embedded')"
    )
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(query)  # type: ignore[call-overload]
    assert raised.value.sqlstate == state
    assert hint in str(raised.value.diag.message_hint)


def test_vectors_come_out_as_they_went_in(connection: Connection, vectors: NDArray[np.float32]) -> None:
    row = connection.execute("select imgsearch.embedding(12)::real[]").fetchone()
    assert row is not None
    assert np.array_equal(np.float32(row[0]), vectors[11])
    view = connection.execute(
        "select path, embedding::vector::real[] from imgsearch.images_test where image_id = 12"
    ).fetchone()
    assert view is not None
    assert view[0] == "12.jpg"
    assert np.array_equal(np.float32(view[1]), vectors[11])
