"""The scan behind ``duplicates``: both ways of comparing agree, and what is interrupted goes on."""

import signal
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, get_model, insert_model
from pgimgsearch.duplicates import find
from pgimgsearch.embeddings.matmul import CpuProducts, TorchProducts
from pgimgsearch.errors import DatabaseError, ModelError, UsageError
from pgimgsearch.indexing.build import BuildOptions, build_index
from pgimgsearch.reporter import Reporter
from tests.integration.test_duplicate_pairs import exact, fill, reported
from tests.support.builders import add_images, add_model, clustered, copy_vectors

VECTORS = clustered(1500, 16)


def remembered(connection: Connection) -> set[tuple[int, int]]:
    return set(connection.execute("select content_a, content_b from imgsearch.duplicate_pair").fetchall())


@pytest.mark.parametrize("method", ["index", "exact", "auto"])
def test_every_way_finds_the_pairs_that_numpy_finds(
    connection: Connection, url: str, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "FEW", 0)
    model = fill(connection, VECTORS)
    build_index(connection, model, BuildOptions(64))
    model = get_model(connection, "pairs")
    told: list[str] = []
    progress: list[int] = []
    found = find.find(
        url, model, 0.9, method=method, reporter=Reporter(told.append, lambda done, _: progress.append(done))
    )
    true = exact(VECTORS, 0.9)
    assert found.compared == 1500
    assert progress[-1] == 1500
    assert len(remembered(connection) ^ true) / len(true) < 0.01
    assert found.pairs == found.new_pairs == len(remembered(connection))
    assert bool(told) == (method == "auto")
    again = find.find(url, model, 0.9, method=method)
    assert (again.compared, again.new_pairs, again.pairs) == (0, 0, found.pairs)


def test_new_images_are_compared_with_all(connection: Connection, url: str) -> None:
    """Exactly, in tiles: the first 1,400 are known, the others are new."""
    model = fill(connection, VECTORS)
    connection.execute(
        sql.SQL("create temporary table late as select * from {} where content_id > 1400").format(model.table)
    )
    connection.execute(sql.SQL("delete from {} where content_id > 1400").format(model.table))
    assert find.find(url, model, 0.9).compared == 1400
    connection.execute(sql.SQL("insert into {} select * from late").format(model.table))
    assert find.find(url, model, 0.9).compared == 100
    assert len(remembered(connection) ^ exact(VECTORS, 0.9)) <= 3  # rounding at the threshold
    assert reported(connection) == remembered(connection)


def test_hashes(connection: Connection, url: str) -> None:
    add_images(connection, 300)
    bits = np.random.default_rng(6).integers(0, 2, (300, 64))
    bits[150:] = bits[:150] ^ (np.random.default_rng(7).random((150, 64)) < 0.08)
    model = _bits(connection)
    connection.cursor().executemany(
        sql.SQL("insert into {} values (%s, %s::bit(64))").format(model.table),
        [(n, "".join(map(str, row))) for n, row in enumerate(bits.tolist(), 1)],
    )
    found = find.find(url, model, 0.9, method="exact")
    agree = (bits[:, None, :] == bits[None, :, :]).mean(axis=2)
    true = {(int(a) + 1, int(b) + 1) for a, b in np.argwhere(np.triu(agree, 1) >= 0.9)}
    assert remembered(connection) == true
    assert found.pairs > 50
    assert {(a, b) for a, b, *_ in connection.execute(
        "select image_a, image_b from imgsearch.duplicates(threshold => 0.9)").fetchall()} == true  # fmt: skip


def _bits(connection: Connection) -> StoredModel:
    return insert_model(
        connection,
        {"name": "hashes", "dim": 64, "storage": "bit", "metric": "hamming", "backend": "pdq", "checkpoint": "hashes",
         "output": "hash", "preprocess": {}, "fingerprint": "hashes", "has_text": False, "near": 0.9},
        aliases=["default"],
    )  # fmt: skip


def test_an_interrupted_scan_goes_on_and_a_second_one_waits(
    connection: Connection, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fill(connection, VECTORS)
    monkeypatch.setattr(CpuProducts, "tile", 256)

    def interrupt(done: int, _: int | None) -> None:
        if done:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(DatabaseError, match="another scan"):
                find.find(url, model, 0.9)

    stopped = find.find(url, model, 0.9, method="exact", reporter=Reporter(progress=interrupt))
    assert stopped.interrupted
    assert stopped.compared == 256
    rest = find.find(url, model, 0.9, method="exact")
    assert rest.compared == 1500 - 256
    assert len(remembered(connection) ^ exact(VECTORS, 0.9)) <= 3


def test_what_cannot_be_is_said(connection: Connection, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fill(connection, VECTORS)
    with pytest.raises(ModelError, match="has no index"):
        find.find(url, model, 0.9, method="index")
    monkeypatch.setattr(find, "machine_memory", lambda: 0)
    with pytest.raises(ModelError, match="do not fit"):
        find.find(url, model, 0.9)


def test_a_threshold_that_makes_no_sense_leaves_nothing_behind(connection: Connection, url: str) -> None:
    model = fill(connection, VECTORS)
    with pytest.raises(UsageError, match="no threshold for duplicates"):
        find.find(url, model, 0.0)
    assert remembered(connection) == set()
    assert find.find(url, model, 0.95).compared == 1500
    assert connection.execute("select threshold from imgsearch.duplicate_scan").fetchone() == (0.95,)


def test_a_refused_scan_keeps_the_pairs_of_earlier_ones(connection: Connection, url: str) -> None:
    add_images(connection, 4500)
    model = add_model(connection, "fill", 16)
    copy_vectors(connection, model.table_name, VECTORS)
    build_index(connection, model, BuildOptions(64))
    model = get_model(connection, "fill")
    find.find(url, model, 0.95)
    before = remembered(connection)
    assert before
    with pytest.raises(UsageError, match="no threshold for duplicates"):
        find.find(url, model, 0.0)  # too low by mistake
    assert remembered(connection) >= before  # a few that the index had not found are right, too
    assert connection.execute("select min(similarity) >= 0.95 from imgsearch.duplicate_pair").fetchone() == (True,)
    assert connection.execute("select threshold from imgsearch.duplicate_scan").fetchone() == (0.95,)


# Equal vectors are exact's alone: of thousands an HNSW graph finds no way to others.
@pytest.mark.parametrize(("method", "noise"), [("index", 1e-3), ("exact", 1e-3), ("exact", 0)])
def test_a_crowd_of_copies_costs_no_more_than_its_size(
    connection: Connection, url: str, method: Any, noise: float
) -> None:
    """However many images look alike: pairs of others stay, and new ones of others are found."""
    add_images(connection, 2400)
    model = add_model(connection, "fill", 16)
    copy_vectors(connection, model.table_name, VECTORS)
    build_index(connection, model, BuildOptions(64))
    model = get_model(connection, "fill")
    find.find(url, model, 0.95, method=method)
    before = remembered(connection)
    crowd = -VECTORS[0] + np.random.default_rng(2).normal(0, noise, (800, 16))
    copy_vectors(connection, model.table_name, np.concatenate([crowd, VECTORS[:100]]), first=1500)
    found = find.find(url, model, 0.95, method=method)
    assert remembered(connection) >= before
    missed = {(n, n + 2300) for n in range(1, 101)} - remembered(connection)
    assert len(missed) <= (10 if method == "index" else 0)  # a graph finds fewer ways around a crowd
    assert found.crowded >= (100 if method == "index" else 800 - 256)
    if method == "exact":
        assert len(remembered(connection) - before) <= 256 * 255 // 2 + (800 - 256) * 256 + 200


def test_a_crowd_is_no_reason_to_refuse_a_model_without_a_threshold(connection: Connection, url: str) -> None:
    """Nor is a burst of new images, at a threshold that all others make sense at."""
    add_images(connection, 2900)
    model = add_model(connection, "fill", 16)
    connection.execute('update imgsearch.model set near = null, "similar" = null')
    model = get_model(connection, "fill")
    copy_vectors(connection, model.table_name, VECTORS)
    assert find.find(url, model, 0.95).compared == 1500
    crowd = -VECTORS[0] + np.random.default_rng(2).normal(0, 1e-3, (1400, 16))
    copy_vectors(connection, model.table_name, crowd, first=1500)
    assert find.find(url, model, 0.95).compared == 1400
    with pytest.raises(UsageError, match="no threshold for duplicates"):
        find.find(url, model, 0.0)


def test_contents_with_equal_pixels_are_one_of_a_crowd(connection: Connection, url: str) -> None:
    """700 files with the pixels of the first keep no copy out: images 1, 701 and 702 are alike."""
    model = fill(connection, np.concatenate([np.repeat(VECTORS[:1], 702, axis=0), VECTORS[1:100]]))
    connection.execute("update imgsearch.content set pixel_hash = decode(md5('same'), 'hex') where content_id <= 700")
    found = find.find(url, model, 0.999, method="exact")
    assert (found.compared, found.crowded) == (801, 0)
    assert remembered(connection) == {(1, 701), (1, 702), (701, 702)}
    connection.execute("delete from imgsearch.duplicate_scan")
    connection.execute("select imgsearch._begin_scan(m, 0.999) from imgsearch.model m")
    anew = connection.execute("select image_a, image_b from imgsearch.duplicates(0.999, kinds => '{near}')").fetchall()
    assert set(anew) == {(1, 701), (1, 702), (701, 702)}


def test_vectors_of_any_length_have_the_similarities_of_the_database(connection: Connection, url: str) -> None:
    add_images(connection, 200)
    model = add_model(connection, "long", 16, storage="vector")
    scaled = clustered(200, 16) * np.random.default_rng(1).choice([1e-7, 1, 1e5], (200, 1))
    connection.cursor().executemany(
        sql.SQL("insert into {} values (%s, %s::real[]::vector)").format(model.table),
        [(number, vector.tolist()) for number, vector in enumerate(scaled, 1)],
    )
    anew = connection.execute("select image_a, image_b from imgsearch.duplicates(threshold => 0.9)").fetchall()
    find.find(url, model, 0.9, method="exact")
    assert len(remembered(connection) ^ set(anew)) <= 2  # rounding at the threshold
    assert len(anew) > 5


def test_products_on_a_device_are_those_of_numpy() -> None:
    """By torch, on the device that every machine has."""
    vectors = VECTORS.astype(np.float16)
    parts = slice(0, 700), slice(400, 1500)
    for one, other in zip(
        CpuProducts(vectors).above(*parts, 0.9), TorchProducts(vectors, "cpu").above(*parts, 0.9), strict=True
    ):  # fmt: skip
        assert len(one) > 100
        np.testing.assert_allclose(one, other, rtol=1e-5)
