"""Sizes and storage: many matches, hashes, and vectors inline in their rows."""

import numpy as np
import psycopg
import pytest
from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import insert_model
from pgimgsearch.indexing.build import BuildOptions, build_index
from tests.integration.test_search import ids, nearest, overlap
from tests.support.builders import add_images, add_model, add_vectors, clustered


def test_more_than_ten_thousand_matches_go_through_the_index_and_stay_right(connection: Connection) -> None:
    rows = 24_000
    add_images(connection, rows)
    model = add_model(connection, "test", 16)
    made = clustered(rows, 16)
    add_vectors(connection, model.table_name, made)
    build_index(connection, model, BuildOptions(256))
    connection.execute("update imgsearch.image set metadata = jsonb_build_object('half', image_id % 2)")
    exact = made.astype(np.float16).astype(np.float32)
    odd = np.arange(1, rows + 1) % 2 == 1
    recalls = []
    for image in range(1, 1001, 50):
        found = ids(connection, "select image_id from imgsearch.similar(%s, filter => '{\"half\": 1}')", image)
        assert len(found) == 10
        recalls.append(overlap(found, nearest(exact, image, 10, odd)))
    assert np.mean(recalls) >= 0.97
    assert len(ids(connection, "select image_id from imgsearch.similar(1, k => 900, filter => '{\"half\": 1}')")) == 900
    # nothing is silently missing: where the index gives up before the matches, all of them are read, or an error says so
    far = nearest(exact, 1, rows)[12_000:]
    connection.execute("update imgsearch.image set metadata = '{\"far\": 1}' where image_id = any(%s)", [far])
    connection.execute("set hnsw.max_scan_tuples = 1")
    query = "select image_id from imgsearch.similar(1, filter => '{\"far\": 1}')"
    assert ids(connection, query) == far[:10]
    connection.execute("set imgsearch.exact_limit = 10000")
    with pytest.raises(psycopg.Error, match="more than 10000 images match") as raised:
        ids(connection, query)
    assert raised.value.sqlstate == "PI006"
    assert "imgsearch.exact_limit" in str(raised.value.diag.message_hint)


def test_bits(connection: Connection) -> None:
    add_images(connection, 500)
    model = insert_model(connection, {"name": "hash", "dim": 64, "storage": "bit", "metric": "hamming", "backend": "pdq",
        "checkpoint": "x", "output": "hash", "preprocess": {}, "fingerprint": "x", "has_text": False}, aliases=["default"])  # fmt: skip
    bits = np.random.default_rng(5).integers(0, 2, (500, 64))
    rows = [(number + 1, "".join(map(str, row))) for number, row in enumerate(bits)]
    with connection.cursor() as cursor:
        cursor.executemany(sql.SQL("insert into {} values (%s, %s::bit(64))").format(model.table), rows)
    for indexed in (False, True):
        if indexed:
            build_index(connection, model, BuildOptions(64))
        hamming = np.count_nonzero(bits != bits[41], axis=1)
        found = connection.execute(
            "select image_id, similarity from imgsearch.similar(42, k => 5, exact => %s)", [not indexed]
        ).fetchall()
        true = sorted((int(h), n + 1) for n, h in enumerate(hamming) if n != 41)[:5]
        assert [row[1] for row in found] == pytest.approx([1 - h / 64 for h, _ in true])
        again = connection.execute(
            "select image_id from imgsearch.similar_to_bits(imgsearch.embedding_bits(42), k => 1)"
        ).fetchone()
        assert again == (42,)


@pytest.mark.parametrize("storage", ["halfvec", "vector"])
def test_storage_is_inline_and_typed(connection: Connection, storage: str) -> None:
    model = add_model(connection, "wide", 768, storage)
    row = connection.execute(
        "select format_type(atttypid, atttypmod), attstorage::text, reloptions from pg_attribute a join pg_class c on c.oid = attrelid "
        "where c.relname = %s and attname = 'embedding'", [model.table_name],
    ).fetchone()  # fmt: skip
    assert row == (f"{storage}(768)", "e", ["toast_tuple_target=8160"])
    add_images(connection, 3)
    connection.execute(
        sql.SQL("insert into {} select n, array_fill(0.1, array[768])::vector from generate_series(1, 3) n").format(
            model.table
        )
    )
    toast = connection.execute(
        "select pg_relation_size(reltoastrelid) from pg_class where relname = %s", [model.table_name]
    ).fetchone()
    assert toast == (0,)
