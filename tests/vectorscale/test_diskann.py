"""The index of pgvectorscale: chosen where a graph of vectors does not fit, found through by every search."""

import json
from dataclasses import replace

import numpy as np
import psycopg
import pytest
from typer.testing import CliRunner

from benchmarks.harness import add_model, add_vectors, clustered
from pgimgsearch.cli.app import app
from pgimgsearch.database import migrate
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import ModelError
from pgimgsearch.indexing import build as index
from pgimgsearch.indexing import methods as sizing
from pgimgsearch.indexing import recall
from pgimgsearch.indexing import shadow_table as aside
from pgimgsearch.indexing import status as index_status
from pgimgsearch.indexing.after_load import finish
from pgimgsearch.indexing.index_names import index_name
from pgimgsearch.operations.doctor import check
from tests.integration.test_index_methods import (
    ASKED,
    DIM,
    HOW,
    ROWS,
    found_share,
    pairs_and_neighbours_are_found,
    scans,
    stored,
    wishing,
)  # fmt: skip

SETTINGS = (
    "select array_agg(current_setting(name)) from unnest(array['enable_seqscan', 'diskann.query_rescore', "
    "'diskann.query_search_list_size']) name"
)


@pytest.mark.parametrize("storage", ["halfvec", "vector"])
def test_every_search_goes_through_it_and_finds_the_neighbours(connection: Connection, storage: str) -> None:
    vectors = clustered(ROWS, DIM)
    stored(connection, 3 * vectors, storage)  # nor need they be of length one
    built = index.build(connection, wishing(connection, "diskann"), HOW)
    assert built is not None
    assert built.recall is not None
    assert built.recall >= 0.99
    model = store.get_model(connection, "test")
    assert (model.index_method, model.ef_search, index.is_fulfilled(model)) == ("diskann", built.ef_search, True)
    name, most = index_name(model), np.arange(1, ROWS + 1) % 4 != 0
    connection.execute("update imgsearch.image set metadata = '{\"most\": true}' where image_id % 4 <> 0")
    with connection.transaction():
        assert found_share(connection, vectors) >= 0.95  # it loads the library with its settings
    before = connection.execute(SETTINGS).fetchone()
    with connection.transaction():
        first = scans(connection, name)
        assert found_share(connection, vectors) >= 0.95
        through = scans(connection, name)
        assert through >= first + len(ASKED)
        assert found_share(connection, vectors, ", filter => '{\"most\": true}'", most) >= 0.95
        assert scans(connection, name) >= through + len(ASKED)
        assert connection.execute(SETTINGS).fetchone() == before
    pairs_and_neighbours_are_found(connection, vectors)


def test_it_takes_the_place_of_a_graph_and_gives_it_back(connection: Connection, url: str) -> None:
    vectors = clustered(ROWS, DIM)
    stored(connection, vectors)
    names = "select relname from pg_class where relname ~ '^embedding_test_256_' and relkind = 'i' order by 1"
    for method, end in (("hnsw", "hnsw"), ("diskann", "disk"), ("diskann", "disk"), ("hnsw-binary", "bits"),
                        ("diskann", "disk")):  # fmt: skip
        for concurrently in (False, True):
            index.build(connection, wishing(connection, method), index.Build(256, concurrently))
            assert [row[0] for row in connection.execute(names).fetchall()] == sorted(
                [f"embedding_test_256_{end}", "embedding_test_256_pkey"]
            )
            state = index_status.status(connection)[0]
            assert (state["method"], state["valid"], state["advice"]) == (method, True, None)
    own = sizing.index_row_bytes(store.get_model(connection, "test"), "diskann")
    assert 0.7 < state["index_bytes"] / (ROWS * own) < 1.4
    migrate.downgrade(url, "0005")  # an older release cannot ask through it
    assert connection.execute(names).fetchall() == [("embedding_test_256_pkey",)]
    kept = connection.execute("select index_method, index_wanted ->> 'method' from imgsearch.model").fetchone()
    assert kept == ("none", "hnsw")
    migrate.upgrade(url)
    assert found_share(connection, vectors) >= 0.95


def test_it_is_taken_where_a_graph_of_vectors_does_not_fit_and_bits_say_too_little(
    connection: Connection, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stored(connection, np.random.default_rng(2).standard_normal((ROWS, 32), dtype=np.float32))
    assert sizing.instead_of_bits(model, diskann=True) == ["diskann", "hnsw"]
    assert sizing.instead_of_bits(replace(model, dim=4096), diskann=True) == ["diskann"]
    assert sizing.instead_of_bits(replace(model, dim=4096), diskann=False) == []
    monkeypatch.setattr(sizing, "suitable", lambda *_: "hnsw-binary")
    # at 200 candidates bits find 0.72 of these and two bits an element 0.86, by so many questions to 0.01
    monkeypatch.setattr(recall, "EFFORTS", [100, 200])
    monkeypatch.setattr(recall, "sample_for", lambda _: 400)
    command = ["index", "build", "test", "--method", "auto", "--recall", "0.79"]
    done = CliRunner().invoke(app, ["--db", url, "--json", *command])
    assert "trying method diskann instead" in done.stderr
    assert json.loads(done.stdout)["method"] == "diskann"


def test_rows_that_come_and_go_after_the_build_are_found_and_not(connection: Connection) -> None:
    vectors = clustered(ROWS, DIM)
    model = stored(connection, vectors)
    connection.execute(
        f"create temporary table late as select * from imgsearch.{model.table_name} where content_id > 2400"  # type: ignore[call-overload]
    )
    connection.execute(f"delete from imgsearch.{model.table_name} where content_id > 2400")  # type: ignore[call-overload]
    index.build(connection, wishing(connection, "diskann"), HOW)
    connection.execute(f"insert into imgsearch.{model.table_name} select * from late")  # type: ignore[call-overload]
    assert found_share(connection, vectors) >= 0.95
    connection.execute("delete from imgsearch.image where image_id > 2400")
    gone = np.arange(1, ROWS + 1) <= 2400
    assert found_share(connection, vectors, keep=gone) >= 0.95


def test_without_the_extension_it_is_refused_with_the_way_out(connection: Connection, server: str, url: str) -> None:
    stored(connection, clustered(ROWS, DIM))
    model = wishing(connection, "diskann")
    with psycopg.connect(host=server, user="postgres", dbname=connection.info.dbname, autocommit=True) as owner:
        owner.execute("drop extension vectorscale")
    with pytest.raises(ModelError, match="has no pgvectorscale"):
        index.build(connection, model, HOW)
    built = index.build(connection, model, HOW, method="hnsw")
    assert built is not None


def test_a_table_is_laid_out_anew_in_partitions_that_have_one_each_and_again_in_one(connection: Connection) -> None:
    vectors = clustered(ROWS, DIM)
    model = stored(connection, vectors)
    index.build(connection, model, HOW, method="diskann")
    for parts in (3, 1):
        aside.begin(connection, model, parts)
        aside.finish(connection, model, HOW)
        state = index_status.status(connection)[0]
        assert (state["method"], state["partitions"], state["valid"], state["advice"]) == ("diskann", parts, True, None)
        assert found_share(connection, vectors) >= 0.95
        model = store.get_model(connection, "test")
    connection.execute("create index embedding_test_256_disk_new on imgsearch.embedding_test_256 (content_id)")
    assert "embedding_test_256_disk_new is left of a build that was killed, unless one is running" in [
        difference.what for difference in check(connection)
    ]


def test_an_ingest_goes_on_where_the_wished_one_cannot_be_made(connection: Connection, server: str, url: str) -> None:
    stored(connection, clustered(ROWS, DIM))
    wishing(connection, "diskann")
    add_model(connection, "other", 16)
    add_vectors(connection, "embedding_other_16", clustered(ROWS, 16))
    with psycopg.connect(host=server, user="postgres", dbname=connection.info.dbname, autocommit=True) as owner:
        owner.execute("drop extension vectorscale")
    assert finish(url, ["test", "other"], remote=False) == {"test": "unable", "other": "built"}
    assert [model.status for model in store.models(connection)] == ["ready", "ready"]


def test_a_search_that_was_the_first_leaves_the_session_as_it_was(connection: Connection, url: str) -> None:
    """The settings of a library that is loaded on the way, also where it was set back before that."""
    stored(connection, clustered(ROWS, DIM))
    index.build(connection, wishing(connection, "diskann"), HOW)
    with psycopg.connect(url, autocommit=True) as fresh:
        fresh.execute("select imgsearch._put_settings(imgsearch._set_scan(m, 40)) from imgsearch.model m")
        with fresh.transaction():
            assert len(fresh.execute("select * from imgsearch.similar(7)").fetchall()) == 10
            assert fresh.execute(SETTINGS).fetchone() == (["on", "50", "100"],)
        assert fresh.execute(SETTINGS).fetchone() == (["on", "50", "100"],)
