"""Several questions at once, groups, labels, pages and recall: against NumPy on the same vectors."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import get_model
from pgimgsearch.indexing.build import BuildOptions, build_index, drop_index
from tests.conftest import filled
from tests.support.builders import add_images, add_model, add_vectors, clustered

ROWS, DIM = 2000, 32


@pytest.fixture(scope="module")
def template(admin: Connection, server: str, template: str) -> Iterator[str]:
    yield from filled(admin, server, template, fill)


def fill(connection: Connection) -> None:
    """2,000 images in products of five (every tenth stands alone), two models, the first of which reads text."""
    add_images(connection, ROWS)
    for number, name in enumerate(("test", "other")):
        model = add_model(connection, name, DIM)
        add_vectors(connection, model.table_name, clustered(ROWS, DIM, seed=number + 1))
        build_index(connection, model, BuildOptions(64))
    connection.execute("update imgsearch.model set has_text = true, logit_scale = 10 where name = 'test'")
    connection.execute("select imgsearch.set_alias('text', 'test')")
    connection.execute(
        "update imgsearch.image set group_key = case when image_id % 10 > 0 then 'sku-' || image_id / 5 end, "
        "caption = case image_id % 3 when 0 then 'a red shoe' when 1 then 'a blue shoe' else 'a hat' end"
    )


@pytest.fixture
def vectors() -> NDArray[np.float32]:
    """Those of the first model, as stored."""
    return rounded(clustered(ROWS, DIM, seed=1))


def rounded(made: NDArray[np.float32]) -> NDArray[np.float32]:
    """As halfvec stores them, at length one."""
    half = made.astype(np.float16).astype(np.float32)
    return half / np.linalg.norm(half, axis=1, keepdims=True)


def cache(connection: Connection, text: str, vector: NDArray[np.float32]) -> None:
    connection.execute("select imgsearch.cache_text(%s, %s::vector, 'test')", [text, json.dumps(vector.tolist())])


def rows(connection: Connection, query: str, *parameters: Any) -> list[Any]:
    return connection.execute(query, parameters).fetchall()  # type: ignore[call-overload,no-any-return]


def test_mixed_lies_between_image_and_text(connection: Connection, vectors: NDArray[np.float32]) -> None:
    cache(connection, "in blue", vectors[1234])
    for weight in (0.0, 0.3, 1.0):
        mixed = (1 - weight) * vectors[6] + weight * vectors[1234]
        similarity = vectors @ (mixed / np.linalg.norm(mixed))
        similarity[6] = -2
        best = np.argsort(-similarity)[:5]
        found = rows(connection, "select image_id, similarity from imgsearch.search_mixed(7, 'in blue', %s, 5, 'test', "
                     "exact => true)", weight)  # fmt: skip
        assert [row[0] for row in found] == (best + 1).tolist()
        assert [row[1] for row in found] == pytest.approx(similarity[best].tolist(), abs=2e-3)


def fused(lists: list[list[int]], weights: list[float], k: int) -> list[int]:
    """Reciprocal rank fusion as its paper has it."""
    scores: dict[int, float] = {}
    for ranked, weight in zip(lists, weights, strict=True):
        for place, image in enumerate(ranked):
            scores[image] = scores.get(image, 0) + weight / (60 + place + 1)
    return sorted(scores, key=lambda image: (-scores[image], image))[:k]


def test_several_models_are_fused_by_rank(connection: Connection, vectors: NDArray[np.float32]) -> None:
    lists = []
    for made in (vectors, rounded(clustered(ROWS, DIM, seed=2))):
        similarity = made @ made[41]
        similarity[41] = -2
        lists.append([int(n) + 1 for n in np.argsort(-similarity)[:100]])
    for weights in ([1.0, 1.0], [1.0, 0.25]):
        found = rows(
            connection,
            "select image_id, similarity from imgsearch.similar_fused(42, array['test', 'other'], %s, exact => true)",
            weights,
        )
        assert [row[0] for row in found] == fused(lists, weights, 10)
        assert all(1 >= a[1] >= b[1] > 0 for a, b in pairwise(found))


def test_hybrid_fuses_vectors_and_words(connection: Connection, vectors: NDArray[np.float32]) -> None:
    cache(connection, "red shoe", vectors[100])
    similarity = vectors @ vectors[100]
    by_vector = [int(n) + 1 for n in np.argsort(-similarity)[:100]]
    by_words = list(range(3, 301, 3))  # all rank alike, so by id
    found = rows(
        connection, "select image_id, caption from imgsearch.search_hybrid('red shoe', 20, 'test', exact => true)"
    )
    assert [row[0] for row in found] == fused([by_vector, by_words], [1, 1], 20)
    only = rows(connection, "select caption, collection from imgsearch.search_hybrid('red shoe', 50, 'test', text_weight => 1, "
                "filter => '{\"tenth\": 3}')")  # fmt: skip
    assert {row[0] for row in only} == {"a red shoe"}
    assert len(rows(connection, "select from imgsearch.search_hybrid('hat -red', 1000, text_weight => 1)")) == 667, (
        "words alone need no vector, and give what has them"
    )
    assert len(rows(connection, "select from imgsearch.search_hybrid('red shoe', 5, 'test', among => '{1,2,4}')")) == 3
    cache(connection, "!!! ' & (", vectors[100])  # no words at all: the vectors answer
    assert [
        row[0]
        for row in rows(
            connection, "select image_id from imgsearch.search_hybrid('!!! '' & (', 3, 'test', exact => true)"
        )
    ] == by_vector[:3]


def group_of(image: int) -> object:
    return f"sku-{image // 5}" if image % 10 else image


@pytest.mark.parametrize("aggregate", ["best", "mean"])
@pytest.mark.parametrize("by", ["image", "group"])
@pytest.mark.parametrize("exact", [True, False])
def test_a_group_counts_once(
    connection: Connection, vectors: NDArray[np.float32], aggregate: str, by: str, exact: bool
) -> None:
    images = range(1, ROWS + 1)
    members: dict[object, list[int]] = {}
    for image in images:
        members.setdefault(group_of(image), []).append(image)
    own = group_of(77)
    queries = vectors[[image - 1 for image in members[own]]] if by == "group" else vectors[[76]]
    scores = {}
    for group, ids in members.items():
        theirs = vectors[[image - 1 for image in ids]]
        if aggregate == "best":
            scores[group] = float((theirs @ queries.T).max())
        else:
            mean = queries.mean(0)
            scores[group] = float((theirs @ mean).mean() / np.linalg.norm(mean))
    del scores[own]
    expected = sorted(scores, key=lambda group: -scores[group])[:20]
    what = "'sku-15'::text" if by == "group" else "77"
    found = rows(
        connection,
        f"select coalesce(group_key, image_id::text), similarity, image_id from imgsearch.similar_groups({what}, 20, 'test', %s, exact => %s)",
        aggregate,
        exact,
    )
    assert [row[1] for row in found] == pytest.approx([scores[group] for group in expected], abs=2e-3)
    assert len({row[0] for row in found}) == 20
    asked = queries.mean(0, keepdims=True) if aggregate == "mean" else queries
    for key, _, image in found:  # shown by its nearest image
        assert str(group_of(image)) == key
        assert image == max(members[group_of(image)], key=lambda one: float((asked @ vectors[one - 1]).max()))


def test_groups_are_complete_where_one_group_fills_the_neighbourhood(
    connection: Connection, vectors: NDArray[np.float32]
) -> None:
    similarity = vectors @ vectors[0]
    near = [int(n) + 1 for n in np.argsort(-similarity)[:1200]]
    connection.execute("update imgsearch.image set group_key = 'huge' where image_id = any(%s)", [near])
    connection.execute("update imgsearch.image set group_key = 'own' where image_id = 1")
    found = rows(connection, "select coalesce(group_key, image_id::text) from imgsearch.similar_groups(1, 30, 'test')")
    assert found[0] == ("huge",)
    assert len(set(found)) == 30


def test_classify_is_a_softmax_or_a_sigmoid(connection: Connection, vectors: NDArray[np.float32]) -> None:
    labels = ["a dog", "a cat", "a hat"]
    for number, label in enumerate(labels):
        cache(connection, label, vectors[300 + number * 50])
    similarity = np.array([vectors[9] @ vectors[300 + number * 50] for number in range(3)])
    weights = np.exp(10 * similarity)
    found = rows(connection, "select label, probability, similarity from imgsearch.classify(10, %s, 'test')", labels)
    order = np.argsort(-weights)
    assert [row[0] for row in found] == [labels[n] for n in order]
    assert [row[1] for row in found] == pytest.approx((weights / weights.sum())[order].tolist(), abs=2e-3)
    assert [row[2] for row in found] == pytest.approx(similarity[order].tolist(), abs=2e-3)
    connection.execute("update imgsearch.model set logit_bias = -3 where name = 'test'")
    found = rows(connection, "select label, probability from imgsearch.classify(10, %s, 'test')", labels)
    assert [row[1] for row in found] == pytest.approx(
        (1 / (1 + np.exp(-(10 * similarity - 3))))[order].tolist(), abs=2e-3
    )


def test_predict_label_votes_among_those_that_have_the_key(
    connection: Connection, vectors: NDArray[np.float32]
) -> None:
    connection.execute(
        "update imgsearch.image set metadata = metadata || jsonb_build_object('kind', image_id % 4) where image_id % 2 = 0"
    )
    connection.execute("update imgsearch.image set metadata = metadata || '{\"kind\": null}' where image_id % 2 = 1")
    similarity = vectors @ vectors[10]
    similarity[10] = -2
    labelled = [int(n) + 1 for n in np.argsort(-similarity) if (n + 1) % 2 == 0][:15]
    votes: dict[str, float] = {}
    for image in labelled:
        votes[str(image % 4)] = votes.get(str(image % 4), 0) + float(similarity[image - 1])
    found = rows(connection, "select label, score, votes from imgsearch.predict_label(11, 'kind', 15, 'test')")
    assert {row[0]: row[1] for row in found} == pytest.approx(
        {label: v / sum(votes.values()) for label, v in votes.items()}, abs=2e-3
    )
    assert sum(row[2] for row in found) == 15
    assert rows(connection, "select * from imgsearch.predict_label(11, 'no such key')") == []


@pytest.mark.parametrize("options", ["", ", filter => '{\"tenth\": 3}'", ", collapse => true"])
def test_pages_join_into_one_list(connection: Connection, vectors: NDArray[np.float32], options: str) -> None:
    connection.execute("insert into imgsearch.image (content_id, collection_id, key, path, metadata) "
                       "select content_id, 1, 'copy-' || n || '-' || content_id, path, metadata from imgsearch.image, generate_series(1, 4) n where image_id <= 300")  # fmt: skip
    whole = [
        row[0] for row in rows(connection, f"select image_id from imgsearch.similar(5, 60, exact => true{options})")
    ]
    for exact in ("true", "false"):
        paged: list[int] = []
        for _ in range(6):
            after = paged[-1] if paged else None
            page = rows(
                connection,
                f"select image_id from imgsearch.similar(5, 10, after => %s, exact => {exact}{options})",
                after,
            )
            paged += [row[0] for row in page]
        assert len(set(paged)) == 60
        if exact == "true":
            assert paged == whole
        else:
            assert len(set(paged) & set(whole)) >= 59


def test_recall_is_measured_and_tuned(connection: Connection, vectors: NDArray[np.float32], cli: Any) -> None:
    connection.execute(
        "drop index imgsearch.embedding_test_32_hnsw"
    )  # for a poor one, so that there is something to tune
    connection.execute("create index embedding_test_32_hnsw on imgsearch.embedding_test_32 "
                       "using hnsw (embedding halfvec_cosine_ops) with (m = 3, ef_construction = 6)")  # fmt: skip
    query = (
        "select imgsearch.recall('test', ef_search => 11, sample => 400), imgsearch.recall('test', ef_search => 400)"
    )
    low, high = rows(connection, query)[0]
    assert low < high <= 1
    found, sample = 0.0, list(range(1, ROWS, 8))
    for image in sample:
        similarity = vectors @ vectors[image - 1]
        kth = sorted(similarity)[-11]
        got = rows(connection, "select similarity from imgsearch.similar(%s, model => 'test', ef_search => 11)", image)
        found += sum(row[0] >= kth - 2e-3 for row in got) / 10
    assert low == pytest.approx(found / len(sample), abs=0.12)
    done = cli("--json", "index", "tune", "test", "--recall", "0.9", "--sample", "100")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    chosen = next(row for row in table if row["chosen"])
    assert chosen["recall"] >= 0.9
    assert all(row["recall"] < 0.9 for row in table if row["ef_search"] < chosen["ef_search"])
    assert get_model(connection, "test").ef_search == chosen["ef_search"]
    drop_index(connection, get_model(connection, "other"))
    assert rows(connection, "select imgsearch.recall('other')") == [(None,)]
    refused = cli("index", "tune", "other")
    assert refused.returncode == 5
    assert "pgimgsearch index build other" in refused.stderr


def test_recall_counts_ties_as_found(connection: Connection, vectors: NDArray[np.float32]) -> None:
    connection.execute("update imgsearch.embedding_test_32 e set embedding = "
                       "(select x.embedding from imgsearch.embedding_test_32 x where x.content_id = 1)")  # fmt: skip
    assert rows(connection, "select imgsearch.recall('test', sample => 20)") == [(1.0,)]


@pytest.mark.parametrize(
    ("query", "state"),
    [
        ("select * from imgsearch.search_mixed(1, 'x', 1.5)", "PI008"),
        ("select * from imgsearch.search_mixed(1, 'x', 'nan')", "PI008"),
        ("select * from imgsearch.search_text('  ')", "PI008"),
        ("select * from imgsearch.search_text(null)", "PI008"),
        ("select * from imgsearch.search_text(repeat('x', 10001))", "PI008"),
        ("select * from imgsearch.search_text('x', template => 'no place')", "PI008"),
        ("select * from imgsearch.search_hybrid('x', 0)", "PI008"),
        ("select * from imgsearch.search_hybrid('x', text_weight => null)", "PI008"),
        ("select * from imgsearch.similar_fused(1, '{}')", "PI008"),
        ("select * from imgsearch.similar_fused(1, array['test', null])", "PI008"),
        ("select * from imgsearch.similar_fused(1, array['test'], array[0.0])", "PI008"),
        ("select * from imgsearch.similar_fused(1, array['test'], array['nan'::float8])", "PI008"),
        ("select * from imgsearch.similar_fused(1, array['test', 'nothing'])", "PI001"),
        ("select * from imgsearch.similar_groups(1, aggregate => 'worst')", "PI008"),
        ("select * from imgsearch.similar_groups('no such group'::text)", "PI004"),
        ("select * from imgsearch.similar_groups(99999)", "PI004"),
        ("select * from imgsearch.similar_groups(1, k => 1001)", "PI008"),
        ("select imgsearch.cache_text('nothing', array_fill(0, array[32])::vector, 'test')", "PI002"),
        ("select imgsearch.cache_text(' ', imgsearch.embedding(1), 'test')", "PI008"),
        ("select * from imgsearch.classify(1, '{}', 'test')", "PI008"),
        ("select * from imgsearch.classify(1, array['a'], 'other')", "PI007"),
        ("select * from imgsearch.predict_label(1, '')", "PI008"),
        ("select * from imgsearch.similar(1, k => 10001)", "PI008"),
        ("select * from imgsearch.similar(1, k => null)", "PI008"),
        ("select * from imgsearch.similar(1, ef_search => 0)", "PI008"),
        ("select * from imgsearch.similar(1, filter => '[1]')", "PI008"),
        ("select * from imgsearch.similar(1, filter => '\"red\"')", "PI008"),
        ("select * from imgsearch.similar(1, filter => 'null')", "PI008"),
        ("select * from imgsearch.similar(1, after => 99999)", "PI004"),
        ("select * from imgsearch.duplicates(0.9, filter => '3')", "PI008"),
        ("select * from imgsearch.similar_to(array_fill('nan'::real, array[32])::vector)", "22000"),
        ("select imgsearch.recall('test', k => 0)", "PI008"),
        ("select imgsearch.recall('test', sample => 0)", "PI008"),
        ("select imgsearch.recall('test', ef_search => 1001)", "PI008"),
        ("select * from imgsearch.embedder_status()", "PI010"),
        ("select imgsearch.connect_embedder('localhost', 1, 'secret')", "PI010"),
        ("select * from imgsearch.similar_to_image('\\x00')", "PI010"),
        ("select * from imgsearch.similar_to_image('')", "PI014"),
        ("select * from imgsearch.similar_to_image(null)", "PI014"),
        ("select * from imgsearch.similar_to_image('\\x00', crop => '{1,2}')", "PI008"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_the_session_goes_on(
    connection: Connection, vectors: NDArray[np.float32], query: str, state: str
) -> None:
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(query)  # type: ignore[call-overload]
    assert raised.value.sqlstate == state, raised.value
    assert not state.startswith("PI") or raised.value.diag.message_hint
    assert "secret" not in str(raised.value)
    assert len(rows(connection, "select from imgsearch.similar(1)")) == 10
