"""The door for Postgres, as clients of others' making meet it: libpq, with and without TLS, and strangers."""

import json
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.models import lookup
from pgimgsearch.models.load import load
from pgimgsearch.server import pg_protocol as protocol
from pgimgsearch.server import scram
from pgimgsearch.server.in_thread import in_thread
from pgimgsearch.server.metrics import Metrics
from pgimgsearch.server.pg_server import PgServer
from pgimgsearch.server.serve import Listeners
from pgimgsearch.server.service import Service
from tests.server.blocked_model import HeldBack, until
from tests.server.conftest import PASSWORD


class Stored:
    """As much of a stored model as an embedder looks at."""

    name, output, storage, dim, normalize, has_text, fingerprint = "palette", "histogram", "vector", 32, True, True, "f"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    spec = lookup.resolve("palette", lookup.PLAIN)
    loaded = load(spec)
    Stored.output = spec.output
    made = Service([LoadedModel(Stored(), loaded, 8)], {"text": "palette"}, None, Metrics(), 1)  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert], check=True, capture_output=True)  # fmt: skip
    return cert, key


@pytest.fixture(scope="module")
def port(service: Service) -> Iterator[int]:
    with in_thread(PgServer(service, PASSWORD, None)) as open_port:
        yield open_port


def login(port: int, **options: Any) -> psycopg.Connection[Any]:
    parameters = {"host": "127.0.0.1", "port": port, "user": "pgimgsearch", "password": PASSWORD, "autocommit": True}
    return psycopg.connect(**(parameters | options))  # type: ignore[arg-type]


def test_a_driver_asks_and_is_answered(port: int) -> None:
    with login(port) as client:
        rows = client.execute(b'{"ask": "text", "model": "text", "texts": ["navy", "caf\xc3\xa9 gold"]}').fetchall()
        assert [len(json.loads(row[0])) for row in rows] == [32, 32]
        assert json.loads(client.execute(b'{"ask": "status"}').fetchone()[0])["model"] == "palette"  # type: ignore[index]
        assert client.info.encoding == "utf-8"


@pytest.mark.parametrize(
    ("asked", "state"),
    [
        ("select 1", "PI008"),
        ("", "PI008"),
        ("[]", "PI008"),
        ('{"ask": "everything"}', "PI008"),
        ('{"ask": ["status"]}', "PI008"),
        ('{"ask": "text", "model": "text", "texts": "navy"}', "PI008"),
        ('{"ask": "text", "model": "text", "texts": [1]}', "PI008"),
        ('{"ask": "text", "model": "text", "texts": []}', "PI008"),
        ('{"ask": "text", "model": "text", "texts": ["  "]}', "PI008"),
        ('{"ask": "text", "model": "text", "texts": ["navy"], "template": "none"}', "PI008"),
        ('{"ask": "text", "model": "text", "texts": ["navy"], "template": 3}', "PI008"),
        ('{"ask": "text", "model": "clip", "texts": ["navy"]}', "PI012"),
        ('{"ask": "text", "model": "text", "fingerprint": "g", "texts": ["navy"]}', "PI012"),
        ('{"ask": "text", "model": "text", "texts": ["nothing coloured"]}', "PI007"),
        ('{"ask": "image", "model": "text", "bytes": "?"}', "PI014"),
        ('{"ask": "image", "model": "text", "bytes": "aaaa"}', "PI014"),
        ('{"ask": "image", "model": "text", "bytes": "aaaa", "crop": [1]}', "PI008"),
        ('{"ask": "image", "model": "text", "bytes": "aaaa", "crop": "all of it"}', "PI008"),
    ],
)
def test_bad_questions_are_refused_and_the_connection_goes_on(port: int, asked: str, state: str) -> None:
    with login(port) as client:
        with pytest.raises(psycopg.Error) as raised:
            client.execute(asked.encode())
        assert raised.value.sqlstate == state, raised.value
        assert client.execute(b'{"ask": "status"}').fetchone()


def test_the_extended_protocol_is_refused_once_and_then_simple_queries_work(port: int) -> None:
    with login(port) as client:
        for _ in range(2):
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                client.execute("select %s", [1])
        assert client.execute(b'{"ask": "status"}').fetchone()


def test_client_encodings(port: int) -> None:
    asked = '{"ask": "text", "model": "é", "texts": ["x"]}'
    for name, codec in (("LATIN1", "latin-1"), ("WIN1252", "cp1252"), ("UTF8", "utf-8")):
        with login(port, client_encoding=name) as client:
            client.execute(f"set client_encoding to '{name}'".encode())
            with pytest.raises(psycopg.Error) as raised:
                client.execute(asked.encode(codec))
            assert raised.value.sqlstate == "PI012"


@pytest.mark.parametrize("wrong", [{"password": "another"}, {"user": "postgres"}, {"password": ""}])
def test_strangers_are_refused(port: int, wrong: dict[str, str]) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"password authentication failed|no password supplied"):
        login(port, **wrong)


def test_tls_where_it_is_set_up(service: Service, certificate: tuple[Path, Path], port: int) -> None:
    with in_thread(PgServer(service, PASSWORD, Listeners("", 0, 0, *certificate).tls())) as secure:
        with login(secure, sslmode="verify-full", sslrootcert=str(certificate[0]), host="localhost") as client:
            assert client.pgconn.ssl_in_use
            assert client.execute(b'{"ask": "status"}').fetchone()
        with pytest.raises(psycopg.OperationalError, match="encrypted connections alone"):
            login(secure, sslmode="disable")
    with pytest.raises(psycopg.OperationalError, match="SSL"):
        login(port, sslmode="require")
    with login(port, sslmode="prefer") as client:
        assert not client.pgconn.ssl_in_use


def startup(body: bytes, code: int = 3 << 16) -> bytes:
    return struct.pack("!ii", len(body) + 8, code) + body


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=60).map(startup),
    st.binary(max_size=60).map(lambda body: startup(b"user\0pgimgsearch\0\0") + b"p" + struct.pack("!i", len(body) + 4) + body),
    st.just(struct.pack("!ii", 2**31 - 1, 3 << 16)),
    st.just(startup(b"user\0pgimgsearch\0\0") + b"p" + struct.pack("!i", 2**31 - 1)),
    st.just(startup(b"", protocol.CANCEL_REQUEST)),
))  # fmt: skip
def test_noise_is_hung_up_on_and_harms_nobody(port: int, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(noise)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := client.recv(4096):
                answer += part
        except ConnectionResetError:
            pass
    assert protocol.authentication(protocol.AUTH_OK) not in answer
    with login(port) as honest:
        assert honest.execute(b'{"ask": "status"}').fetchone()


def test_a_replayed_proof_opens_nothing() -> None:
    """The example of RFC 7677, and what an eavesdropper could do with it."""
    verifier = scram.verifier_of("pencil")
    exchange = scram.Exchange(verifier)
    exchange.challenge("n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
    recorded = (
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    with pytest.raises(scram.Refused):
        exchange.prove(recorded)


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    from pgimgsearch.errors import UsageError

    with pytest.raises(UsageError, match="certificate"):
        Listeners("", 0, 0, tmp_path / "missing.pem").tls()


def test_who_waits_is_answered_before_it_ends(service: Service) -> None:
    model = service.find("palette")
    held = HeldBack(model.encoder)
    other = Service([LoadedModel(model.stored, held, 8)], {}, None, Metrics(), 1)  # type: ignore[arg-type]
    wire = PgServer(other, PASSWORD, None)
    answers: list[Any] = []

    def ask() -> None:
        with login(port) as client:
            answers.append(client.execute('{"ask": "text", "model": "palette", "texts": ["navy"]}').fetchone())

    with in_thread(wire) as port:
        asking = threading.Thread(target=ask)
        asking.start()
        assert held.entered.wait(30)
        threading.Thread(target=lambda: (until(lambda: wire._leaving), held.go.set())).start()
    asking.join()
    other.close()
    assert answers[0] is not None
    assert answers[0][0].startswith("[")
