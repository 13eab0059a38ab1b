"""The embedder under clients that mean harm: they starve nobody, and it keeps its bounds."""

import asyncio
import gc
import io
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.server import pg_protocol as protocol
from pgimgsearch.server import pg_server
from pgimgsearch.server import service as services
from pgimgsearch.server.batcher import CROWD, Batcher
from pgimgsearch.server.bound import bound
from pgimgsearch.server.budget import ByteBudget, Places
from pgimgsearch.server.errors import BadImage, Busy, Refusal
from pgimgsearch.server.in_thread import in_thread
from pgimgsearch.server.metrics import Metrics
from pgimgsearch.server.pg_server import ENCODINGS, PgServer
from pgimgsearch.server.serve import Listeners
from pgimgsearch.server.service import Service
from pgimgsearch.server.turns import Turns
from tests.server.test_pg_server import PASSWORD, login

STATUS = b'{"ask": "status"}'


class Counting:
    """An encoder of texts that notes each pass, and waits for leave."""

    def __init__(self) -> None:
        self.spec = type("Spec", (), {"name": "counting"})()
        self.passes: list[list[str]] = []
        self.go = threading.Event()

    def embed_text(self, texts: list[str]) -> Any:
        self.passes.append(list(texts))
        self.go.wait(60)
        return np.array([[float(len(text))] for text in texts], np.float32)


@pytest.fixture
def batcher() -> Iterator[tuple[Batcher, Counting]]:
    encoder = Counting()
    made = Batcher(encoder, 8, lambda *_: None, most_waiting=64)  # type: ignore[arg-type]
    yield made, encoder
    encoder.go.set()
    made.close()


def started(encoder: Counting) -> None:
    deadline = time.monotonic() + 60
    while not encoder.passes and time.monotonic() < deadline:
        threading.Event().wait(0.005)


def test_clients_take_turns(batcher: tuple[Batcher, Counting]) -> None:
    """One that asks for much first is not answered first: each pass has something of everybody who fits."""
    made, encoder = batcher
    made.submit("text", ["held"], "first")
    started(encoder)
    much = made.submit("text", ["much"] * 60, "greedy")
    few = [made.submit("text", [f"few {number}"], f"client {number}")[0] for number in range(20)]
    encoder.go.set()
    for future in few:
        future.result(60)
    served = [text for one in encoder.passes for text in one]
    assert served.index("few 19") < 60, "before the second pass of the greedy one ends"
    assert sum(len(part.result(60)["text"]) for part in much) == 60


def test_one_that_fills_the_queue_keeps_nobody_out(batcher: tuple[Batcher, Counting]) -> None:
    made, encoder = batcher
    made.submit("text", ["held"], "first")
    started(encoder)
    with pytest.raises(Busy):
        for _ in range(100):
            made.submit("text", ["much"] * 10, "greedy")
    made.submit("text", ["mine"], "another")
    with pytest.raises(Busy):
        for number in range(CROWD + 1):
            made.submit("text", ["x"] * 64, f"crowd {number}")
    assert made.waiting <= (CROWD + 1) * 64
    made.submit("text", ["mine"], "one more")


def test_work_for_nobody_is_left_out(batcher: tuple[Batcher, Counting]) -> None:
    made, encoder = batcher
    made.submit("text", ["held"], "first")
    started(encoder)
    for future in made.submit("text", ["unwanted"] * 60, "gone"):
        future.cancel()
    last = made.submit("text", ["last"], "another")
    encoder.go.set()
    assert last[0].result(60)["text"].tolist() == [[4.0]]
    assert "unwanted" not in [text for one in encoder.passes for text in one]


def test_the_oldest_that_waits_gives_way() -> None:
    closed: list[int] = []
    places = Places[int](3, closed.append)
    for number in range(5):
        places.enter(number)
    places.leave(2)
    places.enter(9)
    assert closed == [0, 1]


def test_bytes_are_given_back() -> None:
    budget = ByteBudget(100)
    with budget.share() as take:
        take(60)
        with pytest.raises(Busy), budget.share() as other:
            other(60)
    assert budget.taken == 0


@pytest.fixture
def service(url: str) -> Iterator[Service]:
    with connect(url) as opened:
        model = open_model(opened, "palette")
    made = Service([model], {"text": "palette", "default": "palette"}, None, Metrics(), 2)
    yield made
    made.close()


@pytest.fixture
def port(service: Service) -> Iterator[int]:
    with in_thread(PgServer(service, PASSWORD, None)) as number:
        yield number


def test_long_texts_leave_room_in_a_pass(batcher: tuple[Batcher, Counting]) -> None:
    """Some tokenizers need a second for 10,000 letters in a row: no pass has many of them."""
    made, encoder = batcher
    first = made.submit("text", ["a"], "first")
    started(encoder)
    long, short = made.submit("text", ["b" * 10_000] * 6, "hostile"), made.submit("text", ["c"], "other")
    encoder.go.set()
    for answer in (*first, *long, *short):
        answer.result(timeout=60)
    assert max(sum(map(len, texts)) for texts in encoder.passes) <= 11_000
    assert next(n for n, texts in enumerate(encoder.passes) if "c" in texts) <= 2


def test_too_many_forms_are_refused_at_once(service: Service) -> None:
    """150,000 lines of a template are not built, sent or waited for."""
    model = service.models["palette"]
    hostile = [(["red"], "\n".join(["a {}"] * 150_000)), (["red"] * 1000, "\n".join(["a {}"] * 5)),
               (["a" * 10_000], "{}" * 200_000), (["red"] * 1000, "{}" + "a" * 11_000),
               (["a"], "b" * 9_900_000 + "{}"), (["a"], "a " * 4_900_000 + "{}"), (["a" * 9_000], "{} and {}")]  # fmt: skip
    for texts, template in hostile:
        with pytest.raises(Refusal, match="is the limit"):
            asyncio.run(service.embed_texts(model, texts, template))


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_half_characters_are_refused(service: Service, text: str) -> None:
    for texts, template in (([text], "{}"), (["red"], "{}" + text)):
        with pytest.raises(Refusal, match="half a character"):
            asyncio.run(service.embed_texts(service.models["palette"], texts, template))


def test_more_connections_than_places_keep_nobody_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were opened and say nothing, and those that have sent half of a login."""
    half = struct.pack("!ii", 100, 3 << 16) + b"user\0pg"
    with ExitStack() as stack:
        for number in range(700):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            if number % 2:
                one.sendall(half)
        with login(port) as client:
            assert client.execute(STATUS).fetchone()


def test_idle_clients_give_way_to_new_ones(port: int, service: Service) -> None:
    with in_thread(small_server(service, resting=5)) as number, ExitStack() as stack:
        idle = [stack.enter_context(login(number)) for _ in range(12)]
        assert idle[-1].execute(STATUS).fetchone()
        with pytest.raises(psycopg.OperationalError):
            idle[0].execute(STATUS)


def small_server(service: Service, resting: int) -> PgServer:
    server = PgServer(service, PASSWORD, None)
    server._resting = Places(resting, pg_server._hang_up)
    return server


def test_unfinished_messages_are_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pg_server, "SECONDS_A_MESSAGE", 0.2)
    with login(port) as client, socket.socket(fileno=client.pgconn.socket) as raw:
        raw.sendall(b"Q" + struct.pack("!i", 50_000_000) + b"x" * 100_000)
        raw.settimeout(60)
        assert raw.recv(100) == b"", "it hung up"
        raw.detach()


def test_large_messages_share_a_budget(service: Service) -> None:
    server = PgServer(service, PASSWORD, None)
    server._bytes = ByteBudget(1 << 20)
    with in_thread(server) as number, login(number) as client, login(number) as other:
        with pytest.raises(psycopg.Error, match="too many large requests"):
            client.execute(b" " * (2 << 20))
        assert other.execute(STATUS).fetchone()
    assert server._bytes.taken == 0


def test_encodings_are_those_of_postgres_and_quick(port: int) -> None:
    with login(port) as client:
        client.prepare_threshold = None
        for name in (
            "punycode",
            "idna",
            "utf-7",
            "unicode_escape",
            "raw_unicode_escape",
            "zlib",
            "rot13",
            "uu",
            "nonsense",
        ):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                client.execute(f"set client_encoding to {name}".encode())
        for name in [*ENCODINGS, "utf-8", "win1252", "latin1"]:
            client.execute(f"set client_encoding to '{name}'".encode())
            assert client.execute(STATUS).fetchone()


def test_long_settings_are_questions_like_any_other(port: int) -> None:
    """A pattern over spaces takes seconds for 20,000 of them, and stands still for everybody."""
    with login(port) as client:
        for query in ("set client_encoding=x" + " " * 200_000 + "!", "set client_encoding = 'UTF8'" + " " * 200_000):
            with pytest.raises(psycopg.Error):
                client.execute(query)
        assert client.execute("set client_encoding = 'UTF8';").statusmessage == "SET"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    names = (tmp_path / "cert.pem", tmp_path / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout",
         str(names[1]), "-out", str(names[0])], check=True, capture_output=True,
    )  # fmt: skip
    return names


def test_with_a_certificate_nothing_is_said_in_clear(service: Service, certificate: tuple[Path, Path]) -> None:
    tls = Listeners("", 0, 0, *certificate).tls()
    request = struct.pack("!ii", 8, protocol.SSL_REQUEST)
    startup = struct.pack("!ii", 25, 3 << 16) + b"user\0pgimgsearch\0\0"[:17]
    with in_thread(PgServer(service, PASSWORD, tls)) as number:
        for sent in (startup, request + startup, request + request, request + b"\x16\x03"):
            with socket.create_connection(("127.0.0.1", number), timeout=60) as client:
                client.sendall(sent)
                said = read_all(client)
            assert b"R\0\0\0" not in said, "it asks for no password"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", number), timeout=60) as plain:
            plain.sendall(request)
            assert plain.recv(1) == b"S"
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(request)  # a second one, inside
                assert secure.recv(10) == b""


def read_all(client: socket.socket) -> bytes:
    said = b""
    while part := client.recv(1000):
        said += part
    return said


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.one_of(
    st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=300)).map(lambda one: protocol.message(*one)),
    st.binary(max_size=100),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=4)
                 | st.dictionaries(st.sampled_from(["ask", "model", "texts", "template", "bytes", "crop", "fingerprint"]), inner, max_size=5),
                 max_leaves=8).map(lambda one: protocol.message(b"Q", json.dumps(one).encode() + b"\0")),
), max_size=5))  # fmt: skip
def test_whatever_a_client_sends_the_next_is_answered(port: int, messages: list[bytes]) -> None:
    with login(port) as client, socket.socket(fileno=client.pgconn.socket) as raw:
        raw.sendall(b"".join(messages))
        raw.detach()
    with login(port) as client:
        assert client.execute(STATUS).fetchone()


def bomb(side: int = 9990) -> bytes:
    """A PNG of 99.8 megapixels in a few hundred kilobytes."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(out, "PNG")
    return out.getvalue()


def test_large_images_are_decoded_one_at_a_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """And small ones go by beside them."""
    at_once, most, lock = 0, 0, threading.Lock()
    decode = services.decode_pixels

    def counted(data: bytes, *rest: Any) -> Any:
        nonlocal at_once, most
        large = len(data) > 20_000
        with lock:
            at_once += large
            most = max(most, at_once)
        try:
            return decode(data, *rest)
        finally:
            with lock:
                at_once -= large

    monkeypatch.setattr(services, "decode_pixels", counted)
    model, data = service.models["palette"], bomb(4200)

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(service.embed_picture(model, data, client=n) for n in range(6)))

    assert len(asyncio.run(all_of_them())) == 6
    assert most == 1


def test_clients_take_turns_at_decoding() -> None:
    """A client that sends many images, or leaves before they are decoded, delays another by one image."""
    served: list[str] = []
    go = threading.Event()

    def decode(name: str) -> str:
        go.wait(60)
        served.append(name)
        return name

    async def all_of_them() -> list[Any]:
        turns = Turns(1, "decode")
        held = asyncio.ensure_future(turns.run("first", decode, "held"))
        gone = [asyncio.ensure_future(turns.run("gone", decode, "unwanted")) for _ in range(9)]
        much = [asyncio.ensure_future(turns.run("greedy", decode, "much")) for _ in range(9)]
        few = [asyncio.ensure_future(turns.run(f"client {n}", decode, f"few {n}")) for n in range(5)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        go.set()
        answers = await asyncio.gather(held, *much, *few)
        turns.close()
        return answers

    assert asyncio.run(all_of_them()) == ["held", *["much"] * 9, *[f"few {n}" for n in range(5)]]
    assert sorted(served[:7]) == ["few 0", "few 1", "few 2", "few 3", "few 4", "held", "much"]


PIXELS = "\n".join(["255 0 0"] * 9)


@pytest.mark.parametrize(
    "head", [b"P3 %d %d 255\n" + PIXELS.encode(), b"P6 %d %d 100\n", b"P2 %d %d 9\n", b"P1 %d %d\n"], ids=str
)
def test_formats_that_take_long_have_few_pixels(service: Service, head: bytes) -> None:
    """As text or with values to be scaled, each pixel takes Pillow 50 times as long: 99 megapixels are two minutes."""
    with pytest.raises(BadImage, match="2 megapixels"):
        asyncio.run(service.embed_picture(service.models["palette"], head % (2000, 1001)))
    if head.startswith(b"P3"):
        assert len(asyncio.run(service.embed_picture(service.models["palette"], head % (3, 3)))) == 32


def test_answers_wait_for_no_acknowledgement() -> None:
    """Else each that is written in two parts takes 40 ms more."""
    with bound("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_copy_of_the_database_asks_no_embedder(
    connection: Connection, admin: Connection, url: str, server: str
) -> None:
    with psycopg.connect(url, user="postgres", autocommit=True) as superuser:
        superuser.execute("create extension if not exists dblink")
        superuser.execute("grant usage on foreign data wrapper dblink_fdw to pgimgsearch")
    connection.execute("select imgsearch.connect_embedder('127.0.0.1', 1, 'geheim')")
    row = connection.execute("select srvoptions from pg_foreign_server where srvname = 'imgsearch_embedder'").fetchone()
    assert row is not None
    assert "require_auth=scram-sha-256" in row[0]
    with pytest.raises(psycopg.Error, match="cannot be reached"):
        connection.execute("select * from imgsearch.embedder_status()")
    name = url.partition("?")[0].rpartition("/")[2]
    connection.close()
    admin.execute(f"create database a_copy template {name} owner pgimgsearch")  # type: ignore[call-overload]
    try:
        with psycopg.connect(url.replace(name, "a_copy"), autocommit=True) as copy:
            assert copy.execute("select count(*) from pg_foreign_server").fetchone() == (1,)
            with pytest.raises(psycopg.Error, match="connected to another database, of which this is a copy"):
                copy.execute("select * from imgsearch.embedder_status()")
            copy.execute("select imgsearch.connect_embedder('127.0.0.1', 1, 'geheim')")
            with pytest.raises(psycopg.Error, match="cannot be reached"):
                copy.execute("select * from imgsearch.embedder_status()")
    finally:
        admin.execute("drop database a_copy with (force)")


def test_the_documented_dump_has_no_password(url: str, connection: Connection, tmp_path: Path) -> None:
    from pgimgsearch.database.embedded_programs import binaries
    from tests.conftest import ROOT
    from tests.integration.test_restore import blocks

    with psycopg.connect(url, user="postgres", autocommit=True) as superuser:
        superuser.execute("create extension if not exists dblink")
        superuser.execute("grant usage on foreign data wrapper dblink_fdw to pgimgsearch")
    connection.execute("select imgsearch.connect_embedder('127.0.0.1', 1, 'geheimes Wort')")
    (commands,) = [block for block in blocks(ROOT / "docs" / "operations.md", "sh") if "pg_dump" in block]
    (dump,) = [line for line in commands.replace("\\\n", "").splitlines() if line.startswith("pg_dump")]
    done = subprocess.run(
        ["sh", "-ec", dump.replace("--format custom", "--format plain")], cwd=tmp_path, check=False, capture_output=True, text=True,
        env={"PATH": f"{binaries()}:/usr/bin:/bin", "DATABASE_URL": url},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "shop.dump").read_text()
    assert "imgsearch.image" in text
    assert "geheim" not in text
    assert "CREATE SERVER" not in text


def test_cached_texts_belong_to_the_weights_that_made_them(connection: Connection, url: str, ingest: Callable[..., Any],
                                                          photos: Path) -> None:  # fmt: skip
    ingest(photos, "palette")
    vector = "('[1' || repeat(',0', 31) || ']')::vector"
    connection.execute(f"select imgsearch.cache_text('sea', {vector}, 'palette')")  # type: ignore[call-overload]
    assert connection.execute("select imgsearch.text_vector('sea', 'palette')").fetchone()
    connection.execute("update imgsearch.model set fingerprint = 'other' where name = 'palette'")
    with pytest.raises(psycopg.Error, match="is not embedded yet"):
        connection.execute("select imgsearch.text_vector('sea', 'palette')")
    with pytest.raises(psycopg.Error, match="of another version"):
        connection.execute(
            f"select imgsearch._cache_texts('palette', 'first', array['x'], array[{vector}], '{{}}')"  # type: ignore[arg-type]
        )


def test_the_embedded_database_has_no_tls(certificate: tuple[Path, Path], cli: Callable[..., Any]) -> None:
    done = cli("serve", "--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]), db=None)
    assert done.returncode == 2, done.stderr
    assert "the embedded Postgres has no TLS" in done.stderr
    assert "--db" in done.stderr


def test_docs_load_nothing(service: Service) -> None:
    from fastapi.testclient import TestClient

    from pgimgsearch.server.http_api import application

    with TestClient(application(service, PASSWORD)) as client:
        page = client.get("/docs")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http://" not in page.text
        assert "https://" not in page.text
        assert "<script" not in page.text
        assert "POST /embed/text" in page.text
        assert client.get("/redoc").status_code in {401, 404}


@pytest.mark.parametrize("crop", [[20_000, 0, 5, 5], None])
def test_what_was_refused_is_not_kept(service: Service, crop: Any) -> None:
    """Errors know the frames that they passed, and what those hold: pictures of hundreds of megabytes."""
    data = saved_png(Image.new("1", (1200, 1000)))
    if crop is None:
        data = data[: len(data) // 2]

    async def ask() -> None:
        with suppress(Refusal):  # and no pytest.raises, which keeps what it catches
            await service.embed_picture(service.find("palette"), data, crop)
            pytest.fail("it was not refused")

    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            asyncio.run(ask())
        kept = [one for one in gc.get_objects() if isinstance(one, Image.Image) and one.size == (1200, 1000)]
    finally:
        gc.enable()
    assert len(kept) == 0
    assert sys.getrefcount(data) < 10  # one each, if they were


def saved_png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
