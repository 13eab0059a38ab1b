"""Shadow tables: searches and writers go on, nothing is lost, and the new table has all that the old one had."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel, get_model
from pgimgsearch.database.reconnect import Session
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.errors import BusyError, ModelError, RecallError
from pgimgsearch.indexing import shadow_table as swapping
from pgimgsearch.indexing.after_load import after_load
from pgimgsearch.indexing.build import BuildOptions, build_index
from pgimgsearch.indexing.ddl import create_index
from pgimgsearch.indexing.embedding_table import shadow_table
from pgimgsearch.indexing.shadow_table import (
    _other_transactions,
    _swap,
    complete_load,
    create_shadow,
    drop_retired,
)
from pgimgsearch.indexing.status import index_status
from pgimgsearch.ingest import run
from pgimgsearch.ingest.load_target import count_new, join_shadows, wants_shadow
from pgimgsearch.operations.schema_check import schema_findings
from pgimgsearch.sources.folder import folder_source
from tests.integration.test_index_methods import found_share
from tests.support.builders import add_images, add_model, add_vectors, clustered
from tests.support.images import photo
from tests.support.roles import drop_roles

pytestmark = pytest.mark.slow

Ingest = Callable[..., run.Report]
LIVE, ALL, DIM = 2500, 3200, 256
HOW = BuildOptions(256)
LEFT = "select relname from pg_class where relnamespace = 'imgsearch'::regnamespace and relname ~ '__(shadow|retired|old|new)'"


def live(connection: Connection, method: str = "hnsw") -> StoredModel:
    """A model with an index over the first of its contents."""
    add_images(connection, ALL)
    model = add_model(connection, "test", DIM)
    add_vectors(connection, model.table_name, clustered(ALL, DIM)[:LIVE])
    connection.execute("select imgsearch.set_index('test', %s)", [method])
    build_index(connection, get_model(connection, "test"), HOW)
    return get_model(connection, "test")


def with_shadow(connection: Connection) -> StoredModel:
    """A live model, beside whose table the other contents lie."""
    model = live(connection)
    create_shadow(connection, model)
    add_vectors(connection, "embedding_test_256__shadow", clustered(ALL, DIM)[LIVE:], first=LIVE)
    return model


def count(connection: Connection, table: str) -> int:
    row = connection.execute(sql.SQL("select count(*) from {}").format(sql.Identifier("imgsearch", table))).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def asked_all_the_time(url: str) -> Iterator[list[int]]:
    """Searches one after the other while the block runs; how many answers each had."""
    answers: list[int] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not done.is_set():
                try:
                    answers.append(len(connection.execute("select * from imgsearch.similar(7)").fetchall()))
                    connection.execute("select count(*) from imgsearch.images_test where content_id < 100").fetchone()
                except psycopg.Error as error:
                    failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        done.set()
        thread.join()
    assert not failed


@pytest.mark.parametrize(("method", "parts"), [("hnsw", 1), ("hnsw-binary", 1), ("hnsw", 3)])
def test_the_shadow_replaces_the_live_table(
    url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, method: str, parts: int
) -> None:
    model, vectors = live(connection, method), clustered(ALL, DIM)
    connection.execute("grant select on imgsearch.image to pg_monitor")
    connection.execute("grant insert on imgsearch.embedding_test_256 to pg_read_all_data")
    create_shadow(connection, model, parts)
    add_vectors(connection, "embedding_test_256__shadow", vectors[LIVE : ALL - 5], first=LIVE)
    there = "select has_table_privilege('pg_monitor', 'imgsearch.embedding_test_256__shadow', 'select')"
    assert connection.execute(there).fetchone() == (False,)
    assert "pgimgsearch index build test" in str(index_status(connection)[0]["advice"])
    make = create_index

    def meanwhile(*given: Any, **options: Any) -> None:
        make(*given, **options)
        add_vectors(connection, "embedding_test_256", vectors[ALL - 5 : ALL - 2], first=ALL - 5)
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("delete from imgsearch.image where image_id in (100, 3000)")
            other.execute("delete from imgsearch.content where content_id in (100, 3000)")

    monkeypatch.setattr(swapping, "create_index", meanwhile)
    with asked_all_the_time(url) as answers:
        built = complete_load(connection, model, HOW)
    assert len(answers) > 3
    assert set(answers) == {10}
    assert built is not None
    assert built.recall is not None
    assert built.recall >= 0.99
    assert count(connection, "embedding_test_256") == ALL - 2 - 2
    model = get_model(connection, "test")
    assert (model.index_method, model.partitions, model.status) == (method, parts, "building")
    assert model.index_state["rows"] == ALL - 5
    state = index_status(connection)[0]
    assert (state["valid"], state["advice"]) == (True, None)
    assert connection.execute(LEFT).fetchall() == []
    assert list(schema_findings(connection)) == []
    vectors[[99, 2999, ALL - 1, ALL - 2]] = 0.001 * np.ones(DIM)  # those that are not there
    assert found_share(connection, vectors) >= 0.95
    rights = (
        "select has_table_privilege('pg_monitor', 'imgsearch.embedding_test_256', 'select'), "
        "has_table_privilege('pg_read_all_data', 'imgsearch.embedding_test_256', 'insert'), "
        "has_table_privilege('pg_monitor', 'imgsearch.images_test', 'select')"
    )
    assert connection.execute(rights).fetchone() == (True, True, True)
    listed = "select count(*) from imgsearch.images_test"
    assert connection.execute(listed).fetchone() == (ALL - 4,)
    again = build_index(connection, model, HOW)  # names are as they were
    assert again is not None
    connection.execute("select imgsearch.set_alias(a.alias, null) from imgsearch.alias a")
    connection.execute("select imgsearch.drop_model('test')")


def test_whatever_stops_it_the_next_one_goes_on(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    model, vectors = with_shadow(connection), clustered(ALL, DIM)
    for step in ("_copy", "create_index", "_swap"):
        with monkeypatch.context() as patch:

            def fail(*_: Any, **__: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(swapping, step, fail)
            with pytest.raises(KeyboardInterrupt):
                complete_load(connection, model, HOW)
        assert found_share(connection, vectors[:LIVE]) >= 0.95
        assert count(connection, "embedding_test_256") == LIVE
    with psycopg.connect(connection.info.dsn, autocommit=True) as other:
        assert locks.share(other, locks.SHADOW, model.model_id)
        with pytest.raises(BusyError, match="still writes to the shadow"):
            complete_load(connection, model, HOW)
    assert complete_load(connection, model, HOW) is not None
    assert found_share(connection, vectors) >= 0.95
    assert complete_load(connection, model, HOW) is None  # nothing is beside it any more


FORMER = "select to_regclass('imgsearch.embedding_test_256__retired') is not null"


@contextmanager
def reading_before_the_swap(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    """A session that has read the model's row when the swap comes."""
    swap = _swap
    with psycopg.connect(url) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def read_before(*given: Any) -> None:
            reader.execute("select from imgsearch.model")
            swap(*given)

        monkeypatch.setattr(swapping, "_swap", read_before)
        yield reader


def test_the_former_table_waits_for_those_who_are_about_to_read_it(
    url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_shadow(connection)
    look, asked = _other_transactions, threading.Semaphore(0)

    def asking(connection: Connection) -> set[str]:
        asked.release()
        return look(connection)

    monkeypatch.setattr(swapping, "_other_transactions", asking)
    with reading_before_the_swap(url, monkeypatch) as reader, psycopg.connect(url) as idle, connect(url) as builder:
        idle.execute("select from imgsearch.model")  # it will see the swap, so that nobody waits for its end
        with ThreadPoolExecutor(1) as pool:
            built = pool.submit(complete_load, builder, model, HOW)
            assert all(asked.acquire(timeout=60) for _ in range(3))  # so that it waits
            assert len(reader.execute("select * from imgsearch.similar(7)").fetchall()) == 10
            reader.commit()
            assert built.result() is not None
        assert connection.execute(FORMER).fetchone() == (False,)


def test_who_reads_for_too_long_leaves_the_former_table_to_the_next_ingest(
    url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_shadow(connection)
    monkeypatch.setattr(swapping, "SECONDS_TO_READ", 0)
    with reading_before_the_swap(url, monkeypatch) as reader:
        assert complete_load(connection, model, HOW) is not None
        assert len(reader.execute("select * from imgsearch.similar(7)").fetchall()) == 10
        told = [one.mend for one in schema_findings(connection) if "__retired" in one.finding]
        assert told == ["drop table imgsearch.embedding_test_256__retired"]
        assert not drop_retired(connection, model, seconds=0)
        reader.commit()
    after_load(url, ["test"], remote=False)
    assert connection.execute(FORMER).fetchone() == (False,)


def test_bits_that_find_too_little_give_way_to_the_method_there_is(connection: Connection) -> None:
    vectors = np.random.default_rng(2).standard_normal((ALL, DIM), dtype=np.float32)
    add_images(connection, ALL)
    model = add_model(connection, "test", DIM)
    add_vectors(connection, model.table_name, vectors[:LIVE])
    assert build_index(connection, model, HOW) is not None
    connection.execute("select imgsearch.set_index('test', 'hnsw-binary')")
    model = get_model(connection, "test")
    create_shadow(connection, model)
    add_vectors(connection, "embedding_test_256__shadow", vectors[LIVE:], first=LIVE)
    strict = BuildOptions(256, recall=1.0)
    with pytest.raises(RecallError):
        complete_load(connection, model, strict, method="hnsw-binary")
    assert count(connection, "embedding_test_256") == LIVE
    built = complete_load(connection, model, strict)
    assert built is not None
    assert built.method == "hnsw"
    model = get_model(connection, "test")
    assert (model.index_method, model.index_spec["method"]) == ("hnsw", "hnsw-binary")
    assert count(connection, "embedding_test_256") == ALL


def test_few_shadow_rows_are_inserted_into_the_live_index(url: str, connection: Connection) -> None:
    model, vectors = live(connection), clustered(ALL, DIM)
    create_shadow(connection, model)
    add_vectors(connection, "embedding_test_256__shadow", vectors[LIVE : LIVE + 20], first=LIVE)
    names = "select oid from pg_class where relname = 'embedding_test_256_hnsw'"
    before = connection.execute(names).fetchall()
    assert after_load(url, ["test"], remote=False) == {"test": "swapped"}
    assert connection.execute(names).fetchall() == before
    assert count(connection, "embedding_test_256") == LIVE + 20
    assert connection.execute(LEFT).fetchall() == []


def test_others_write_to_the_live_table_meanwhile(
    ingest: Ingest, url: str, admin: Connection, connection: Connection, photos: Path, tmp_path: Path
) -> None:
    """Those who own nothing cannot see what is beside, and need not."""
    ingest(photos, "palette")
    admin.execute("drop role if exists shadow_writer")
    admin.execute("create role shadow_writer login")
    connection.execute("select imgsearch.grant_access('shadow_writer', 'writer')")
    with connect(url) as opened:
        models = [run_model(opened, "palette")]
    create_shadow(connection, models[0].stored)
    photo(tmp_path / "more" / "new.png", seed=200)
    theirs = url.replace("pgimgsearch@", "shadow_writer@")
    counts = run.ingest(theirs, folder_source(tmp_path / "more"), models, run.Options()).counts
    assert counts["palette"]["embedded"] == 1
    with connect(theirs) as other:
        assert shadow_table(other, models[0].stored) is None
        with pytest.raises(ModelError, match="only the owner"):
            create_shadow(other, models[0].stored)
    assert complete_load(connection, models[0].stored, HOW) is not None
    assert count(connection, "embedding_palette_32") == 13
    drop_roles(url, "shadow_writer")


def test_what_somebody_puts_on_the_table_later_is_not_lost(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = live(connection)
    create_shadow(connection, model)
    make = create_index

    def meanwhile(*given: Any, **options: Any) -> None:
        make(*given, **options)
        connection.execute("create view public.mine as select * from imgsearch.embedding_test_256")

    with monkeypatch.context() as patch:
        patch.setattr(swapping, "create_index", meanwhile)
        with pytest.raises(psycopg.Error, match=r"view public\.mine"):
            complete_load(connection, model, HOW)
    assert count(connection, "embedding_test_256") == LIVE
    with pytest.raises(BusyError, match="with 1 partitions"):
        create_shadow(connection, model, 3)
    connection.execute("drop view public.mine")
    assert complete_load(connection, model, HOW) is not None


def test_an_ingest_into_a_shadow_is_searched_once_it_is_swapped_in(
    ingest: Ingest, url: str, connection: Connection, photos: Path, tmp_path: Path
) -> None:
    ingest(photos, "palette", "pdq")
    for number in range(20):
        photo(tmp_path / "more" / f"{number}.png", seed=100 + number)
    (tmp_path / "more" / "twin.png").write_bytes((photos / "a" / "00.png").read_bytes())
    with connect(url) as opened:
        models = [run_model(opened, name) for name in ("palette", "pdq")]
    source, options = folder_source(tmp_path / "more"), run.Options(shadow=frozenset({"palette"}))
    counts = run.ingest(url, source, models, options).counts
    assert (counts["palette"]["embedded"], counts["palette"]["reused"]) == (20, 1)
    assert (count(connection, "embedding_palette_32"), count(connection, "embedding_palette_32__shadow")) == (12, 20)
    assert count(connection, "embedding_pdq_256") == 32
    again = run.ingest(url, source, models, run.Options()).counts  # one that goes to the live table knows of them
    assert (again["palette"]["unchanged"], again["pdq"]["unchanged"]) == (21, 21)
    assert after_load(url, ["palette", "pdq"], remote=False) == {"palette": "swapped"}
    assert count(connection, "embedding_palette_32") == 32
    found = connection.execute(
        "select path from imgsearch.similar((select image_id from imgsearch.image where path = 'twin.png'), 1, 'palette')"
    ).fetchone()
    assert found == ("a/00.png",)


def run_model(opened: Connection, name: str) -> Any:

    return open_model(opened, name)


def test_it_is_chosen_where_much_comes_to_a_live_index(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swapping, "MIN_ROWS", 600)
    model = live(connection)
    bare = add_model(connection, "bare", 8)

    def chosen(model: StoredModel, new: int, requested: bool | None = None) -> bool:
        return wants_shadow(connection, model, lambda: new, requested)

    assert not chosen(model, 624)  # less than a quarter of what is there
    assert chosen(model, 625)
    assert not chosen(model, 10**6, requested=False)
    assert not chosen(bare, 10**6, requested=True)
    assert chosen(model, 0, requested=True)
    with psycopg.connect(connection.info.dsn, autocommit=True) as other:  # another load is at its end
        assert locks.take(other, locks.INDEX, model.model_id)
        assert not chosen(model, 10**6)
    create_shadow(connection, model)
    assert chosen(model, 1)  # what was begun goes on
    with psycopg.connect(connection.info.dsn, autocommit=True) as other:  # unless another is at it
        assert locks.share(other, locks.SHADOW, model.model_id)
        assert not chosen(model, 10**6)
    connection.execute("drop table imgsearch.embedding_test_256__shadow")
    connection.execute("create view public.mine as select * from imgsearch.embedding_test_256")
    connection.execute("create index mine on imgsearch.embedding_test_256 (content_id) where content_id > 5")
    assert not chosen(model, 10**6)
    with pytest.raises(ModelError, match="index mine, view mine"):
        chosen(model, 10**6, requested=True)
    with pytest.raises(ModelError, match="index mine, view mine"):
        join_shadows(Session(connection), [model], {"test"})
    assert connection.execute(LEFT).fetchall() == []


def test_what_comes_is_counted_for_each_model(connection: Connection, photos: Path) -> None:
    model, bare = live(connection), add_model(connection, "bare", 8)
    source = folder_source(photos)
    assert count_new(connection, source, 12, None, model) == 12
    connection.execute(
        "insert into imgsearch.image (content_id, collection_id, key, path) select n, (select collection_id from "
        "imgsearch.collection where name = 'photos'), n || '.png', n || '.png' from generate_series(1, 4) n"
    )
    assert count_new(connection, source, 12, None, model) == 8
    assert count_new(connection, source, 12, None, bare) == 12
    assert count_new(connection, folder_source(photos / "a"), 8, None, model) == 8  # none of those is in it
    assert count_new(connection, source, None, None, model) == 0  # nobody has counted


def test_a_load_that_was_stopped_continues_in_its_shadow(
    cli: Callable[..., Any], ingest: Ingest, connection: Connection, photos: Path, tmp_path: Path
) -> None:
    ingest(photos, "palette")
    for number in range(9):
        photo(tmp_path / "more" / f"{number}.png", seed=100 + number)
    ingest(tmp_path / "more", "palette")
    target = str(tmp_path / "all.parquet")
    assert cli("export", target, "--model", "palette").returncode == 0
    connection.execute("delete from imgsearch.image where collection_id = 2")
    connection.execute(
        "delete from imgsearch.content c where c.content_id not in (select i.content_id from imgsearch.image i)"
    )
    create_shadow(connection, get_model(connection, "palette"))
    done = cli("--json", "import", target)
    assert "loading into a shadow table" in done.stderr
    assert "was swapped in" in done.stderr
    assert count(connection, "embedding_palette_32") == 21
    refused = cli("ingest", str(photos), "-m", "palette", "--shadow-table", "--skip-duplicates")
    assert refused.returncode == 2
    assert "--shadow-table" in refused.stderr


def test_a_filled_table_is_laid_out_in_partitions(cli: Callable[..., Any], url: str) -> None:
    with connect(url) as connection:
        live(connection)
    assert json.loads(cli("--json", "index", "partition", "test", "3").stdout) == {"model": "test", "partitions": 3}
    with connect(url) as connection:
        assert found_share(connection, clustered(ALL, DIM)[:LIVE]) >= 0.95
        tree = connection.execute(
            "select relid::text from pg_partition_tree('imgsearch.embedding_test_256') where isleaf"
        )
        assert {row[0] for row in tree.fetchall()} == {f"imgsearch.embedding_test_256_p0{n}" for n in range(3)}
    assert json.loads(cli("--json", "index", "status").stdout)[0]["partitions"] == 3
    assert cli("index", "partition", "test", "1").returncode == 0
    assert json.loads(cli("--json", "index", "status").stdout)[0]["rows"] == LIVE
