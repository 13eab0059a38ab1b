"""The door for HTTP under clients that send half, read nothing or send too much at once, with TLS and without."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn

from pgimgsearch.database.connection import connect
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.server import http_guard
from pgimgsearch.server.budget import Structure
from pgimgsearch.server.errors import TooLarge
from pgimgsearch.server.http_api import application
from pgimgsearch.server.http_guard import guarded_protocol
from pgimgsearch.server.metrics import Metrics
from pgimgsearch.server.serve import Listeners
from pgimgsearch.server.service import Service
from tests.security.test_embedder import certificate  # noqa: F401  (a fixture)
from tests.server.conftest import PASSWORD

SECRET = {"Authorization": f"Bearer {PASSWORD}"}


@pytest.fixture(params=["http", "https"])
def base(
    request: pytest.FixtureRequest, url: str, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> Iterator[str]:  # fmt: skip
    """The URL of a server that has little time and few places."""
    monkeypatch.setattr(http_guard, "MOST_WAITING", 8)
    monkeypatch.setattr(http_guard, "SECONDS_FOR_HEAD", 1)
    monkeypatch.setattr(http_guard, "SECONDS_FOR_PART", 4)
    monkeypatch.setattr(http_guard, "JSON_BYTES", 1_000_000)
    with connect(url) as opened:
        service = Service([open_model(opened, "palette")], {"text": "palette"}, None, Metrics(), 2)
    tls = Listeners("", 0, 0, *certificate).tls() if request.param == "https" else None
    config = uvicorn.Config(application(service, PASSWORD), http=guarded_protocol(tls), ws="none", log_level="error")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    yield f"{request.param}://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    service.close()


def client_of(base: str) -> httpx.Client:
    return httpx.Client(base_url=base, headers=SECRET, verify=False, timeout=60)  # noqa: S501


def raw(base: str, *, handshake: bool = True) -> socket.socket:
    address = httpx.URL(base)
    made = socket.create_connection((address.host, address.port), timeout=60)
    if address.scheme == "http" or not handshake:
        return made
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(made)


def ends(client: socket.socket) -> bool:
    """Whether the server closes the connection."""
    try:
        while client.recv(1 << 16):
            pass
    except OSError as error:
        return not isinstance(error, TimeoutError)
    return True


def test_connections_that_say_nothing_give_way(base: str) -> None:
    """Those that never begin their handshake as well; and no answer is lost by it."""
    with ExitStack() as stack, client_of(base) as client:
        silent = [stack.enter_context(raw(base, handshake=False)) for _ in range(50)]
        assert client.post("/embed/text", json={"texts": ["red"]}).status_code == 200
        assert all(map(ends, silent))


def test_who_does_not_read_is_hung_up_on(base: str) -> None:
    question = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with raw(base) as client:
        client.settimeout(20)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            while True:  # until the server reads no more, and then ends the connection
                client.sendall(question * 100)


def test_bodies_share_a_budget(base: str) -> None:
    half = b"POST /embed/text HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\nAuthorization: Bearer "
    with raw(base) as first, client_of(base) as client:
        first.sendall(half + PASSWORD.encode() + b"\r\n\r\n" + b" " * 800_000)
        large = {"texts": ["red" + " " * 8000] * 30}
        answers = [client.post("/embed/text", json=large).status_code for _ in range(3)]
        told = first.recv(1000)  # that its rest did not come, where it was the first to be counted
        assert 503 in answers or b" 503 " in told
        assert ends(first)
        assert client.post("/embed/text", json=large).status_code == 200


@pytest.mark.parametrize("body", [
    b'{"texts": ["red"], "x": ' + b"[" * 120_000, b'{"texts": ["red"], "x": [' + b"[]," * 120_000 + b"[]]}",
    b'{"texts": [' + b'"ab",' * 30_000 + b'"a"]}',
], ids=["deep", "wide", "strings"])  # fmt: skip
def test_json_of_many_parts_is_refused(base: str, body: bytes) -> None:
    with client_of(base) as client:
        answer = client.post("/embed/text", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413


def test_parts_are_counted_over_all_chunks() -> None:
    structure = Structure()
    with pytest.raises(TooLarge):
        for byte in b'{"texts": [' + b'"",' * 30_000:
            structure.add(bytes([byte]))


def test_tiny_chunks_come_in_between_others(base: str) -> None:
    """Each is a part of its own: what has arrived is parsed some KB at a time, and those without a password not at all."""
    chunks = b"1\r\nx\r\n" * 50_000
    head = b"POST /embed/text HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with ExitStack() as stack, client_of(base) as client:
        for _ in range(4):
            hostile = stack.enter_context(raw(base))
            with suppress(OSError):
                hostile.sendall(head + chunks)
        assert client.post("/embed/text", json={"texts": ["red"]}).status_code == 200


def test_names_of_files_are_whole(base: str) -> None:
    """Another charset than UTF-8 is refused, and nothing of it is logged."""
    head = 'Content-Disposition: form-data; name="files"; filename="+2AA-.jpg"\r\n\r\nx\r\n'
    form = f"--b\r\n{head}--b--\r\n".encode()
    with client_of(base) as client:
        for charset, status in (("utf-7", 400), ("punycode", 400), ("utf-8", 200)):
            kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
            assert client.post("/embed/image?model=palette", content=form, headers=kind).status_code == status
