"""Text to image and image to image in one SELECT: SQL, dblink, the wire and the model; and all that can go wrong."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.models.backends.palette import COLOURS, Palette
from pgimgsearch.server.batcher import CROWD
from pgimgsearch.server.http_api import application
from pgimgsearch.server.metrics import Metrics
from pgimgsearch.server.service import Service
from tests.server.blocked_model import held_back, until
from tests.server.conftest import PASSWORD, Serving, free_port
from tests.support.images import photo
from tests.support.roles import drop_roles


def connect_embedder(connection: Connection, port: int, password: str = PASSWORD) -> None:
    connection.execute("select imgsearch.connect_embedder('127.0.0.1', %s, %s)", [port, password])


def first(connection: Connection, text: str) -> str:
    row = connection.execute("select path from imgsearch.search_text(%s, 1)", [text]).fetchone()
    assert row is not None
    return str(row[0])


def refused(connection: Connection, query: str, *parameters: Any) -> tuple[str | None, str]:
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(query, parameters)  # type: ignore[call-overload]
    assert PASSWORD not in str(raised.value)
    return raised.value.sqlstate, f"{raised.value.diag.message_primary}; {raised.value.diag.message_hint}"


def test_words_never_seen_before_are_found_and_cached(
    swatches: Path, connected: Serving, connection: Connection
) -> None:
    assert first(connection, "deep navy") == "navy.png"
    connected.stop()  # writes what it has to keep
    assert connection.execute("select query from imgsearch.text_embedding").fetchall() == [("deep navy",)]
    assert first(connection, " deep navy") == "navy.png"
    state, said = refused(connection, "select * from imgsearch.search_text('deep teal')")
    assert state == "PI010"
    assert "pgimgsearch serve" in said


def test_a_picture_that_is_not_in_the_database(swatches: Path, connected: Serving, connection: Connection) -> None:
    both = Image.new("RGB", (200, 100), COLOURS["navy"])
    both.paste(COLOURS["gold"], (100, 0, 200, 100))
    both.save(swatches / "both.jpg", quality=95)
    data = (swatches / "both.jpg").read_bytes()
    query = "select path, similarity from imgsearch.similar_to_image(%s, k => 1, crop => %s)"
    assert connection.execute(query, [data, [5, 0, 80, 100]]).fetchone() == ("navy.png", pytest.approx(1, abs=0.02))
    assert connection.execute(query, [data, [110, 10, 80, 80]]).fetchone() == ("gold.png", pytest.approx(1, abs=0.02))
    found = connection.execute("select path from imgsearch.similar_to_image(%s, k => 2)", [data]).fetchall()
    assert {row[0] for row in found} == {"navy.png", "gold.png"}
    stored = (swatches / "teal.png").read_bytes()
    distance = (
        "select imgsearch.image_vector(%s) <=> embedding::vector from imgsearch.images_palette where path = 'teal.png'"
    )
    assert connection.execute(distance, [stored]).fetchone() == (pytest.approx(0, abs=1e-3),)
    for crop, state in (([150, 0, 80, 100], "PI008"), ([-1, 0, 10, 10], "PI008"), ([0, 0, 0, 5], "PI008")):
        assert refused(connection, "select * from imgsearch.similar_to_image(%s, crop => %s)", data, crop)[0] == state


def test_a_picture_as_a_hash(tmp_path: Path, ingest: Callable[..., Any], serve: Any, connection: Connection) -> None:
    for number in range(6):
        photo(tmp_path / "p" / f"{number}.png", seed=number, size=(160, 120))
    ingest(tmp_path / "p", "pdq")
    connect_embedder(connection, serve("--model", "pdq").port)
    again = tmp_path / "again.jpg"
    Image.open(tmp_path / "p" / "3.png").save(again, quality=95)
    row = connection.execute(
        "select path, similarity from imgsearch.similar_to_image(%s, k => 1)", [again.read_bytes()]
    ).fetchone()
    assert row is not None
    assert row[0] == "3.png"
    assert row[1] > 0.88
    assert refused(connection, "select imgsearch.image_vector(%s)", again.read_bytes())[0] == "PI002"
    flat = tmp_path / "flat.png"
    Image.new("RGB", (64, 64), "white").save(flat)
    assert refused(connection, "select * from imgsearch.similar_to_image(%s)", flat.read_bytes())[0] == "PI014"


def test_bytes_that_are_no_picture(swatches: Path, connected: Serving, connection: Connection, data: Path) -> None:
    bomb = next(iter(sorted((data / "odd").glob("**/*bomb*"), key=lambda path: path.stat().st_size)))
    whole = (swatches / "red.png").read_bytes()
    for broken in (
        b"\0",
        b"no image",
        whole[: len(whole) // 2],
        bomb.read_bytes(),
        b"x" * (64 << 20),
        b"x" * ((64 << 20) + 1),
    ):
        state, said = refused(connection, "select * from imgsearch.similar_to_image(%s)", broken)
        assert state == "PI014", said
    assert first(connection, "teal") == "teal.png"


def test_many_labels_are_asked_for_at_once(swatches: Path, connected: Serving, connection: Connection) -> None:
    connection.execute("update imgsearch.model set logit_scale = 20")
    labels = [*COLOURS, "navy", "red"]
    rows = connection.execute(
        "select label, probability from imgsearch.classify((select image_id from imgsearch.image where path = 'rose.png'), %s)",
        [labels],
    ).fetchall()
    assert rows[0][0] == "rose"
    assert sum(row[1] for row in rows) == pytest.approx(1)
    assert len(rows) == len(labels)


def test_an_embedder_that_was_started_again_is_found_again(
    swatches: Path, serve: Callable[..., Serving], connection: Connection
) -> None:
    notices: list[str] = []
    connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    serving = serve()
    connect_embedder(connection, serving.port)
    assert first(connection, "a gold thing") == "gold.png"
    serving.stop()
    assert refused(connection, "select * from imgsearch.search_text('a teal thing')")[0] == "PI010"
    serve(port=serving.port)
    assert first(connection, "a teal thing") == "teal.png"
    assert notices == []


def test_a_wrong_password_is_told_without_it(swatches: Path, serve: Any, connection: Connection) -> None:
    connect_embedder(connection, serve().port, "another")
    state, said = refused(connection, "select * from imgsearch.search_text('a teal thing')")
    assert state == "PI010"
    assert "password authentication failed" in said


@pytest.mark.parametrize("timeout", ["statement_timeout", "imgsearch.embedder_timeout", "cancel"])
def test_a_slow_embedder_ends_within_the_time_given(
    swatches: Path, url: str, connection: Connection, timeout: str
) -> None:
    with held_back(url) as (encoder, port):
        connect_embedder(connection, port)
        if timeout == "cancel":
            threading.Thread(target=lambda: encoder.entered.wait(120) and connection.cancel_safe()).start()
        else:
            connection.execute("select set_config(%s, '200ms', false)", [timeout])
        state, _ = refused(connection, "select * from imgsearch.search_text('gold')")
        assert state == ("PI013" if timeout.startswith("imgsearch") else "57014")
        encoder.go.set()
        connection.execute("reset all")
        assert first(connection, "navy") == "navy.png"  # and not the late answer to gold


def test_a_silent_peer_is_left(swatches: Path, connection: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connect_embedder(connection, silent.getsockname()[1])
        # from PostgreSQL 16 on dblink has no time limit of its own
        connection.execute("set statement_timeout = '200ms'")
        state, _ = refused(connection, "select * from imgsearch.search_text('gold')")
        assert state == "57014"


def test_a_full_queue_says_busy(swatches: Path, url: str, connection: Connection) -> None:
    with held_back(url, most_waiting=1) as (encoder, port):
        connect_embedder(connection, port)
        others = []

        def ask(text: str) -> None:
            with psycopg.connect(url, autocommit=True) as other:
                others.append(first(other, text))

        asking = [threading.Thread(target=ask, args=[text]) for text in ("gold", "teal", "red", "navy", "pink")]
        asking[0].start()
        assert encoder.entered.wait(120)  # one is at work, and each of four times as many clients as may wait has one
        for thread in asking[1:]:
            thread.start()
        until(lambda: encoder.waiting() == CROWD)
        many = "array(select 'navy ' || n from generate_series(1, 40) n)"
        state, said = refused(
            connection, f"select imgsearch._text_vectors({many}, imgsearch._resolve_model('text'), '{{}}')"
        )
        assert (state, "try again" in said) == ("PI011", True)
        encoder.go.set()
        for thread in asking:
            thread.join()
    assert sorted(others) == ["gold.png", "navy.png", "pink.png", "red.png", "teal.png"]


def test_concurrent_questions_share_a_pass(swatches: Path, url: str, connection: Connection) -> None:
    with held_back(url) as (encoder, port):
        connect_embedder(connection, port)
        answers = {}

        def ask(text: str) -> None:
            with psycopg.connect(url, autocommit=True) as other:
                answers[text] = first(other, text)

        asking = [threading.Thread(target=ask, args=[text]) for text in list(COLOURS)[:12]]
        asking[0].start()
        assert encoder.entered.wait(120)
        for thread in asking[1:]:
            thread.start()
        until(lambda: encoder.waiting() == 11)
        encoder.go.set()
        for thread in asking:
            thread.join()
    assert answers == {name: f"{name}.png" for name in list(COLOURS)[:12]}
    assert encoder.batches == [1, 11]


def test_one_bad_text_fails_alone(swatches: Path, url: str, connection: Connection) -> None:
    with held_back(url) as (encoder, port):
        connect_embedder(connection, port)
        states = {}

        def ask(text: str) -> None:
            with psycopg.connect(url, autocommit=True) as other:
                try:
                    states[text] = first(other, text)
                except psycopg.Error as error:
                    states[text] = str(error.sqlstate)

        asking = [threading.Thread(target=ask, args=[text]) for text in ("gold", "not a colour name", "navy")]
        for thread in asking:
            thread.start()
        encoder.go.set()
        for thread in asking:
            thread.join()
    assert states == {"gold": "gold.png", "not a colour name": "PI007", "navy": "navy.png"}


def test_a_cache_tells_no_tenant_what_the_others_look_for(
    swatches: Path, url: str, connection: Connection, serve: Any
) -> None:
    serving = serve()
    connect_embedder(connection, serving.port)
    connection.execute("alter table imgsearch.image enable row level security")
    assert first(connection, "gold") == "gold.png"
    metrics = f"http://127.0.0.1:{serving.http_port}/metrics"
    until(lambda: 'outcome="lost"} 1' in httpx.get(metrics).text)
    assert connection.execute("select count(*) from imgsearch.text_embedding").fetchone() == (0,)
    connection.execute("alter table imgsearch.image disable row level security")
    assert first(connection, "navy") == "navy.png"
    until(lambda: connection.execute("select count(*) from imgsearch.text_embedding").fetchone() == (1,))


def test_texts_longer_than_the_model_reads_are_told(
    swatches: Path, url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In SQL as notices, and over HTTP as a part of the answer; what is cached was told when it was embedded."""
    monkeypatch.setattr(Palette, "text_context", 3)
    told: list[str | None] = []
    connection.add_notice_handler(lambda notice: told.append(notice.message_primary))
    with held_back(url) as (encoder, port):
        encoder.go.set()
        connect_embedder(connection, port)
        assert first(connection, "gold") == "gold.png"
        assert first(connection, "the colour that is called navy") == "navy.png"
        assert told == ['palette reads the first 3 of 6 tokens of "the colour that is called navy"']
        connection.execute("select imgsearch.text_vector('as red as a rose', 'palette')")
        assert told[1:] == ['palette reads the first 3 of 5 tokens of "as red as a rose"']
        with connect(url) as other:
            service = Service([open_model(other, "palette")], {}, None, Metrics(), 1)
        client = TestClient(application(service, PASSWORD), headers={"Authorization": f"Bearer {PASSWORD}"})
        asked = {"model": "palette", "texts": ["navy", "red as a rose"], "template": "{}\nall in {}"}
        answer = client.post("/embed/text", json=asked).json()
        service.close()
    assert len(answer["embeddings"]) == 2
    assert answer["cut"] == [
        {"text": "red as a rose", "read": 3, "tokens": 4}, {"text": "all in red as a rose", "read": 3, "tokens": 6},
    ]  # fmt: skip


def test_another_version_or_model_is_refused(swatches: Path, serve: Any, connection: Connection) -> None:
    connect_embedder(connection, serve().port)
    connection.execute("update imgsearch.model set fingerprint = 'another'")
    state, said = refused(connection, "select * from imgsearch.search_text('gold')")
    assert (state, "another version" in said) == ("PI012", True)
    assert connection.execute("select model, serves, problem from imgsearch.embedder_status()").fetchall() == [
        ("palette", False, "another version is served")
    ]
    connection.execute("update imgsearch.model set name = 'renamed'")
    state, said = refused(connection, "select * from imgsearch.search_text('gold')")
    assert (state, "start serve with --model renamed" in said) == ("PI012", True)


def test_roles_use_the_embedder_and_never_see_its_password(
    swatches: Path, connected: Serving, connection: Connection, admin: Connection, url: str
) -> None:
    admin.execute("drop role if exists some_reader")
    admin.execute("create role some_reader login")
    with psycopg.connect(url.replace("pgimgsearch@", "some_reader@"), autocommit=True) as reader:
        connection.execute("grant usage on schema imgsearch to some_reader")
        connection.execute("grant select on all tables in schema imgsearch to some_reader")
        state, said = refused(reader, "select * from imgsearch.search_text('gold')")
        assert (state, "db grant reader some_reader" in said) == ("PI010", True)
        connection.execute("select imgsearch.grant_access('some_reader')")
        assert first(reader, "gold") == "gold.png"
        assert reader.execute("select umoptions from pg_user_mappings").fetchall() == [(None,)]
        connect_embedder(connection, connected.port)  # anew: the reader keeps its right
        assert first(reader, "navy") == "navy.png"
    drop_roles(url, "some_reader")


def test_it_works_where_applications_run_it(swatches: Path, connected: Serving, connection: Connection) -> None:
    with connection.transaction():
        assert first(connection, "gold") == "gold.png"
        connection.execute("set transaction read only")
        assert first(connection, "navy") == "navy.png"
    connection.execute("prepare ask (text) as select path from imgsearch.search_text($1, 1)")
    for name in ("teal", "rose", "olive", "cream", "mint", "lime", "sky"):
        assert connection.execute(f"execute ask ('{name}')").fetchone() == (f"{name}.png",)
    connection.execute("discard all")  # as a pool does between its clients
    assert first(connection, "indigo") == "indigo.png"
    connection.execute("set default_transaction_read_only = on")
    assert first(connection, "peach") == "peach.png"


def test_hand_written_sql_with_a_new_text_uses_the_index(
    swatches: Path, connected: Serving, connection: Connection
) -> None:
    query = "select path from imgsearch.images_palette order by embedding <=> imgsearch.text_vector('indigo')::halfvec(32) limit 1"
    connection.execute("set enable_seqscan = off")
    plan = "\n".join(row[0] for row in connection.execute("explain " + query).fetchall())
    assert "embedding_palette_32_hnsw" in plan
    assert connection.execute(query).fetchone() == ("indigo.png",)


def test_a_database_in_another_encoding(
    swatches: Path, connected: Serving, connection: Connection, admin: Connection, server: str
) -> None:
    from pgimgsearch.database import migrate
    from pgimgsearch.database.connection import connect

    admin.execute("create database latin owner pgimgsearch encoding 'LATIN1' locale 'C' template template0")
    try:
        with psycopg.connect(host=server, user="postgres", dbname="latin", autocommit=True) as superuser:
            superuser.execute("create extension vector; create extension dblink; "
                              "grant usage on foreign data wrapper dblink_fdw to pgimgsearch")  # fmt: skip
        latin = f"postgresql://pgimgsearch@/latin?host={server}"
        migrate.upgrade(latin)
        with connect(latin) as opened:
            open_model(opened, "palette")
            connect_embedder(opened, connected.port)
            row = opened.execute("select imgsearch.text_vector('café in blue')::text").fetchone()
            assert row is not None
            assert row == connection.execute("select imgsearch.text_vector('café in blue')::text").fetchone()
            assert "é" in refused(opened, "select imgsearch.text_vector('é')")[1]
    finally:
        admin.execute("drop database latin with (force)")


def test_the_commands_make_the_way_and_check_it(
    swatches: Path, serve: Callable[..., Serving], cli: Callable[..., Any], connection: Connection, tmp_path: Path
) -> None:
    serving = serve()
    missing = cli("db", "connect-embedder", "127.0.0.1", str(serving.port))
    assert (missing.returncode, "--password-file" in missing.stderr) == (2, True)
    secret = ["--password-file", str(serving.password_file)]
    nobody = cli("db", "connect-embedder", "127.0.0.1", str(free_port()), *secret)
    assert (nobody.returncode, "cannot be reached" in nobody.stderr) == (9, True)
    done = cli("db", "connect-embedder", "127.0.0.1", str(serving.port), *secret)
    assert (done.returncode, "it serves palette" in done.stderr) == (0, True), done.stderr
    assert cli("db", "connect-embedder", "127.0.0.1", str(free_port()), *secret).returncode == 9
    looked = cli("doctor")
    assert "serves palette on cpu" in looked.stdout, "one that does not answer replaces none"
    serving.stop()
    looked = cli("doctor")
    assert looked.returncode == 1
    assert "cannot be reached" in looked.stdout
