"""HNSW indexes of vectors and of bits: they find what NumPy finds, are refused where they would not, and leave nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel, get_model
from pgimgsearch.errors import ModelError, RecallError
from pgimgsearch.indexing import methods as sizing
from pgimgsearch.indexing import recall, status
from pgimgsearch.indexing.build import (
    BuildOptions,
    apply_index_spec,
    build_index,
    drop_index,
    has_wanted_index,
    is_index_due,
)
from pgimgsearch.indexing.methods import index_row_bytes, index_spec, suitable_method
from pgimgsearch.indexing.recall import tune
from pgimgsearch.indexing.status import index_status
from pgimgsearch.operations.schema_check import schema_findings
from tests.support.builders import add_images, add_model, add_vectors, clustered

pytestmark = pytest.mark.slow

ROWS, DIM, ASKED = 2500, 256, range(1, 400, 40)
HOW = BuildOptions(256)
ENDS = {"hnsw": "hnsw", "hnsw-binary": "bits"}  # of the names of indexes


def stored(connection: Connection, vectors: NDArray[np.float32], storage: str = "halfvec") -> StoredModel:
    """A model with so many images and their vectors; every second image has metadata."""
    add_images(connection, len(vectors))
    model = add_model(connection, "test", vectors.shape[1], storage)
    add_vectors(connection, model.table_name, vectors)
    return model


def with_method(connection: Connection, method: str) -> StoredModel:
    connection.execute("select imgsearch.set_index('test', %s)", [method])
    return get_model(connection, "test")


def true_neighbours(vectors: NDArray[np.float32], image: int, keep: NDArray[np.bool_] | None = None) -> set[int]:
    rounded = vectors.astype(np.float16).astype(np.float32)
    similarity = rounded @ rounded[image - 1] / np.linalg.norm(rounded, axis=1)
    similarity[image - 1] = -2
    if keep is not None:
        similarity[~keep] = -2
    return {int(place) + 1 for place in np.argsort(-similarity)[:10]}


def found_share(connection: Connection, vectors: NDArray[np.float32], extra: str = "", keep: Any = None) -> float:
    """The mean share of the ten true neighbours that ``similar`` answers."""
    shares = []
    for image in ASKED:
        rows = connection.execute(f"select image_id from imgsearch.similar({image}{extra})").fetchall()  # type: ignore[call-overload]
        assert len(rows) == 10
        shares.append(len({row[0] for row in rows} & true_neighbours(vectors, image, keep)) / 10)
    return float(np.mean(shares))


def scans(connection: Connection, name: str) -> int:
    row = connection.execute("select pg_stat_get_xact_numscans(%s::regclass)", [f"imgsearch.{name}"]).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(
    ("method", "storage"),
    [("hnsw-binary", "halfvec"), ("hnsw-binary", "vector"), ("hnsw", "vector")],
)
def test_every_search_goes_through_any_index_and_finds_the_neighbours(
    connection: Connection, method: str, storage: str
) -> None:
    vectors = clustered(ROWS, DIM)
    model = stored(connection, vectors, storage)
    built = build_index(connection, with_method(connection, method), HOW)
    assert built is not None
    assert built.recall is not None
    assert built.recall >= 0.99
    model = get_model(connection, "test")
    assert (model.index_method, model.ef_search, has_wanted_index(model)) == (method, built.ef_search, True)
    name, most = f"embedding_test_256_{ENDS[method]}", np.arange(1, ROWS + 1) % 4 != 0
    connection.execute("update imgsearch.image set metadata = '{\"most\": true}' where image_id % 4 <> 0")
    connection.execute("select '[1]'::vector")  # loads the library with its settings
    settings = "select array_agg(current_setting(name)) from unnest(array['enable_seqscan', 'hnsw.ef_search', " \
        "'hnsw.iterative_scan', 'hnsw.max_scan_tuples']) name"  # fmt: skip
    before = connection.execute(settings).fetchone()
    with connection.transaction():
        assert found_share(connection, vectors) >= 0.95
        through = scans(connection, name)
        assert through >= len(ASKED)
        assert found_share(connection, vectors, ", filter => '{\"most\": true}'", most) >= 0.95
        assert scans(connection, name) >= through + len(ASKED)
        assert connection.execute(settings).fetchone() == before
    pairs_and_neighbours_are_found(connection, vectors)


def pairs_and_neighbours_are_found(connection: Connection, vectors: NDArray[np.float32]) -> None:
    """Through the model's index, by what looks for many at once."""
    pairs = "select content_a, content_b from imgsearch._pairs((select m from imgsearch.model m), 0.7, " \
        "array(select generate_series(1, 50)))"  # fmt: skip
    by_index = {tuple(row) for row in connection.execute(pairs).fetchall()}
    alike = vectors[:50] @ vectors.T >= 0.7 + 1e-3
    true = {tuple(sorted((a + 1, b + 1))) for a, b in zip(*np.nonzero(alike), strict=True) if a != b}
    assert len(by_index & true) >= 0.95 * len(true)
    neighbours = "select content_id, neighbour from imgsearch._neighbours((select m from imgsearch.model m), %s, 10)"
    near = connection.execute(neighbours, [list(ASKED)]).fetchall()
    assert np.mean([other in true_neighbours(vectors, one) for one, other in near]) >= 0.9


def test_pages_follow_each_other_through_bits(connection: Connection) -> None:
    vectors = clustered(ROWS, DIM)
    stored(connection, vectors)
    build_index(connection, with_method(connection, "hnsw-binary"), HOW)
    whole = [row[0] for row in connection.execute("select image_id from imgsearch.similar(5, k => 30)").fetchall()]
    pages: list[int] = []
    for _ in range(3):
        after = f", after => {pages[-1]}" if pages else ""
        page = connection.execute(f"select image_id from imgsearch.similar(5, k => 10{after})").fetchall()  # type: ignore[call-overload]
        pages += [row[0] for row in page]
    assert len(set(pages)) == 30
    assert len(set(pages) & set(whole)) >= 28


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_bits_are_cut_at_the_mean(connection: Connection, scale: float) -> None:
    """Of features that are never negative the bits alone are all one; vectors need not be of length one."""
    vectors = scale * (np.abs(clustered(ROWS, DIM)) + 0.01)
    stored(connection, vectors)
    built = build_index(connection, with_method(connection, "hnsw-binary"), HOW)
    assert built is not None
    assert built.recall is not None
    assert built.recall >= 0.99
    assert found_share(connection, vectors) >= 0.95


def test_bits_that_say_too_little_are_refused_and_the_old_index_stays(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        recall, "EF_SEARCH_GRID", [100, 200]
    )  # find some 0.7; two fifths of so few rows find nearly all
    vectors = np.random.default_rng(2).standard_normal((ROWS, 8), dtype=np.float32)
    model = stored(connection, vectors)
    build_index(connection, model, HOW)
    indexes = "select relname, relfilenode from pg_class where relname ~ '^embedding_test_8_' order by 1"
    before = connection.execute(indexes).fetchall()
    with pytest.raises(RecallError, match=r"method hnsw-binary finds 0\.\d+ of the true neighbours of test"):
        build_index(connection, model, HOW, method="hnsw-binary")
    assert get_model(connection, "test").index_spec["method"] == "hnsw"
    assert connection.execute(indexes).fetchall() == before
    assert get_model(connection, "test").index_method == "hnsw"
    assert connection.execute("select count(*) from pg_proc where proname ~ '^_bits_'").fetchone() == (0,)
    assert found_share(connection, vectors) >= 0.95
    # without any index, what was refused is not tried again with each ingest
    drop_index(connection, model)
    connection.execute("select imgsearch.set_index('test', 'hnsw-binary')")
    with pytest.raises(RecallError):
        apply_index_spec(connection, model, HOW)
    assert not is_index_due(connection, get_model(connection, "test"))


def test_an_effort_that_was_chosen_outlives_a_rebuild(connection: Connection) -> None:
    model = stored(connection, clustered(ROWS, DIM))
    build_index(connection, model, HOW)
    connection.execute("update imgsearch.model set ef_search = 44")
    for rebuild in (build_index, lambda *given: drop_index(*given[:2]) or build_index(*given)):
        built = rebuild(connection, get_model(connection, "test"), HOW)
        assert built is not None
        assert built.ef_search == get_model(connection, "test").ef_search == 44


def test_many_neighbours_never_lower_the_effort_of_ten(connection: Connection) -> None:
    """A search for 200 looks at 200 candidates whatever the effort is, so that the least reaches as much as others."""
    build_index(connection, stored(connection, clustered(ROWS, DIM)), HOW)
    before = get_model(connection, "test")
    assert tune(connection, before, 0.9, 200, 20)[0]["recall"] >= 0.9
    after = get_model(connection, "test")
    assert (after.ef_search, after.index_state) == (before.ef_search, before.index_state)


def test_indexes_of_the_users_own_are_left_alone(connection: Connection) -> None:
    add_images(connection, 50)
    model = add_model(connection, "test", DIM)
    add_vectors(connection, model.table_name, clustered(50, DIM))
    connection.execute(f"create index my_hnsw on imgsearch.{model.table_name} using hnsw (embedding halfvec_l2_ops)")
    for _ in range(2):
        build_index(connection, get_model(connection, "test"), BuildOptions(64))
    drop_index(connection, get_model(connection, "test"))
    assert connection.execute("select to_regclass('imgsearch.my_hnsw') is not null").fetchone() == (True,)
    assert connection.execute("select imgsearch._user_objects(m) from imgsearch.model m").fetchall() == [
        ("index my_hnsw",)
    ]


def test_the_state_of_other_models_is_shown_where_a_table_was_dropped(connection: Connection) -> None:
    for name in ("one", "other"):
        add_model(connection, name, DIM)
    connection.execute(f"drop table imgsearch.embedding_one_{DIM} cascade")
    assert [row["model"] for row in index_status(connection)] == ["other"]


def test_one_index_replaces_another(connection: Connection) -> None:
    stored(connection, clustered(ROWS, DIM))
    left = "select relname from pg_class where relname ~ '^embedding_test_256_.*' and relkind = 'i' order by 1"
    bits = "select count(*) from pg_proc where proname ~ '^_bits_'"
    for method in ("hnsw-binary", "hnsw", "hnsw-binary"):
        for concurrently in (False, True):
            build_index(connection, with_method(connection, method), BuildOptions(256, concurrently))
            names = [row[0] for row in connection.execute(left).fetchall()]
            assert names == sorted([f"embedding_test_256_{ENDS[method]}", "embedding_test_256_pkey"])
            state = index_status(connection)[0]
            assert (state["method"], state["valid"], state["advice"]) == (method, True, None)
    connection.execute("delete from imgsearch.alias")
    assert not apply_index_spec(connection, get_model(connection, "test"), HOW)
    assert connection.execute(bits).fetchone() == (1,)  # that of the index before went as well
    connection.execute("select imgsearch.drop_model('test')")
    assert connection.execute(bits).fetchone() == (0,)


def test_more_dimensions_than_a_graph_can_have_are_indexed_by_their_bits(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(500, 4096)
    model = stored(connection, vectors)
    assert index_spec(model).method == "hnsw-binary"
    assert not is_index_due(connection, model)
    assert not apply_index_spec(connection, model, HOW)
    with pytest.raises(RecallError, match="500 vectors are too few"):
        build_index(connection, model, HOW)
    monkeypatch.setattr(sizing, "MIN_ROWS", 500)
    assert is_index_due(connection, model)
    assert apply_index_spec(connection, model, HOW)
    model = get_model(connection, "test")
    assert model.index_method == "hnsw-binary"
    assert has_wanted_index(model)
    assert found_share(connection, vectors) >= 0.95


@pytest.mark.parametrize(
    ("dim", "storage", "rows", "method"),
    [(768, "halfvec", 100_000, "hnsw"), (768, "halfvec", 10_000_000, "hnsw-binary"), (64, "halfvec", 10_000_000, "hnsw"),
     (4096, "halfvec", 10, "hnsw-binary"), (256, "bit", 10_000_000, "hnsw")],
)  # fmt: skip
def test_bits_are_chosen_where_a_graph_of_vectors_would_not_fit(
    connection: Connection, dim: int, storage: str, rows: int, method: str
) -> None:
    connection.execute("select imgsearch.add_model('test', %s, 'timm', 'x', 'auto', %s)", [dim, storage])
    assert suitable_method(index_spec(get_model(connection, "test")), rows, 6000) == method


def test_a_hash_has_no_other_bits(connection: Connection) -> None:
    connection.execute("select imgsearch.add_model('hash', 256, 'pdq', 'x', 'auto', 'bit')")
    model = get_model(connection, "hash")
    with pytest.raises(ModelError, match="stores bits already"):
        build_index(connection, model, HOW, method="hnsw-binary")


def test_advice_says_what_time_has_done(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "MANY", 1000)
    vectors = clustered(ROWS, DIM)
    model = stored(connection, vectors)
    table = model.table

    def told() -> str:
        connection.execute("select pg_stat_force_next_flush()")
        return str(index_status(connection)[0]["advice"])

    assert told() == "searches read all 2500 vectors: pgimgsearch index build test"
    build_index(connection, model, HOW)
    assert told() == "None"
    connection.execute(sql.SQL("delete from {} where content_id > 1500").format(table))
    connection.execute(sql.SQL("analyze {}").format(table))
    assert told() == "1000 rows are dead: vacuum imgsearch.embedding_test_256"
    connection.execute(sql.SQL("vacuum analyze {}").format(table))
    assert told() == "it is bloated: pgimgsearch index build test --concurrently"
    build_index(connection, get_model(connection, "test"), HOW)
    connection.execute("update imgsearch.model set index_state = index_state || '{\"recall\": 0.9}'")
    assert told() == "its recall is too low: pgimgsearch index tune test"
    tune(connection, get_model(connection, "test"), 0.99, 10, 50)
    assert told() == "None"
    connection.execute("select imgsearch.set_index('test', 'hnsw-binary')")
    assert told() == "its settings were changed since: pgimgsearch index build test --concurrently"
    connection.execute("drop index imgsearch.embedding_test_256_hnsw")
    assert told() == "it is invalid or was dropped: pgimgsearch index build test --concurrently"


def test_the_command_builds_what_is_asked_for(cli: Callable[..., Any], url: str) -> None:
    with connect(url) as connection:
        stored(connection, np.random.default_rng(2).standard_normal((ROWS, DIM), dtype=np.float32))
    listed = json.loads(cli("--json", "index", "build", "test", "--method", "hnsw", "--recall", "0.95").stdout)
    assert listed["method"] == "hnsw"
    assert listed["index"] == "embedding_test_256_hnsw"
    assert listed["recall"] >= 0.95
    # bits of random vectors find too little
    refused = cli("index", "build", "test", "--method", "hnsw-binary", "--recall", "1")
    assert refused.returncode == 5
    assert "pgimgsearch index build test --method hnsw" in refused.stderr
    rows = json.loads(cli("--json", "index", "status").stdout)
    assert [(row["method"], row["valid"]) for row in rows] == [("hnsw", True)]
    assert json.loads(cli("--json", "index", "build", "test", "--method", "auto").stdout)["method"] == "hnsw"
    cli("index", "drop", "test")
    assert [row["method"] for row in json.loads(cli("--json", "index", "status").stdout)] == ["none"]


@pytest.mark.parametrize("method", ["hnsw", "hnsw-binary"])
def test_a_table_in_partitions_answers_the_same(connection: Connection, method: str) -> None:
    vectors = clustered(ROWS, DIM)
    stored(connection, vectors)
    connection.execute("create view public.mine as select image_id, embedding from imgsearch.images_test")
    with pytest.raises(psycopg.Error, match="already has vectors"):
        connection.execute("select imgsearch.partition_embeddings('test', 4)")
    connection.execute("truncate imgsearch.embedding_test_256")
    for _ in range(2):  # the second time there is nothing to do
        connection.execute("select imgsearch.partition_embeddings('test', 4)")
    add_vectors(connection, "embedding_test_256", vectors)
    model = with_method(connection, method)
    for concurrently in (False, True):
        built = build_index(connection, model, BuildOptions(256, concurrently))
        assert built is not None
        assert built.recall is not None
        assert built.recall >= 0.99
        model = get_model(connection, "test")
        state = index_status(connection)[0]
        assert (state["method"], state["valid"], state["rows"], state["advice"]) == (method, True, ROWS, None)
        assert state["index_bytes"] >= 0.8 * ROWS * index_row_bytes(index_spec(model), method)
        left = (
            "select count(*) from pg_class where relnamespace = 'imgsearch'::regnamespace and relname ~ '__(new|old)$'"
        )
        assert connection.execute(left).fetchone() == (0,)
        each = "select count(*), bool_and(indisvalid) from pg_index where indrelid in " \
            "(select relid from pg_partition_tree('imgsearch.embedding_test_256') where isleaf) and not indisprimary"  # fmt: skip
        assert connection.execute(each).fetchone() == (4, True)
    with connection.transaction():
        assert found_share(connection, vectors) >= 0.95
        part = f"embedding_test_256_p00_{ENDS[method]}"
        assert scans(connection, part) >= len(ASKED)
    connection.execute("update imgsearch.image set metadata = '{\"most\": true}' where image_id % 4 <> 0")
    most = np.arange(1, ROWS + 1) % 4 != 0
    assert found_share(connection, vectors, ", filter => '{\"most\": true}'", most) >= 0.95
    assert connection.execute("select count(*) from public.mine").fetchone() == (ROWS,)
    assert [found for found in schema_findings(connection) if "never loaded" not in found.finding] == []
    connection.execute("delete from imgsearch.alias")
    connection.execute("drop view public.mine")
    connection.execute("select imgsearch.drop_model('test')")
    assert connection.execute("select count(*) from pg_class where relname ~ '^embedding_'").fetchone() == (0,)


def test_a_partitioned_model_is_ingested_and_indexed(cli: Callable[..., Any], url: str, photos: Path) -> None:
    cli("models", "add", "palette")
    assert json.loads(cli("--json", "index", "partition", "palette", "3").stdout)["partitions"] == 3
    first = cli("ingest", str(photos), "--model", "palette")
    assert "index built: palette" in first.stderr
    with connect(url) as connection:
        counts = connection.execute(
            "select (select count(*) from imgsearch.embedding_palette_32), (select count(*) from pg_inherits "
            "where inhparent = 'imgsearch.embedding_palette_32'::regclass)"
        ).fetchone()
        assert counts == (12, 3)
        again = cli("--json", "ingest", str(photos), "--model", "palette")
        assert json.loads(again.stdout)[0]["unchanged"] == 12
        connection.execute("truncate imgsearch.content cascade")
        assert connection.execute("select count(*) from imgsearch.embedding_palette_32").fetchone() == (0,)
