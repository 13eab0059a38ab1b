"""Where images are read from: what a row, a list, a redirect or a stored path may name, and what it may not."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import known_implementations
from hypothesis import given
from hypothesis import strategies as st

from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.ingest import run
from pgimgsearch.sources import web
from pgimgsearch.sources.listing import list_source
from pgimgsearch.sources.locations import ForbiddenLocation, check_location, stored_location, without_user
from pgimgsearch.sources.object_store import filesystem, read_object
from pgimgsearch.sources.parse import parse_sources
from pgimgsearch.sources.read import read_bytes
from pgimgsearch.sources.stream import open_stream
from tests.support.images import photo

ALLOWED = {"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf"}
Ingest = Callable[..., run.Report]


@pytest.mark.parametrize("scheme", sorted({*known_implementations, "FILE", "ftp", "data", "gopher", "jar"} - ALLOWED))
def test_no_other_scheme_is_read(scheme: str) -> None:
    """Every file system that fsspec knows, and others, through each way in."""
    location = f"{scheme}://etc/passwd.jpg"
    for read in (
        check_location, lambda one: read_bytes(one, 100), lambda one: read_object(one, 100), filesystem,
        lambda one: open_stream(one).__enter__(), lambda one: parse_sources([one], None),
        lambda one: read_bytes(f"{one}.tar/x.jpg", 100),
    ):  # fmt: skip
        with pytest.raises((ForbiddenLocation, SourceError, UsageError)):
            read(location)


@pytest.mark.parametrize(
    "location",
    [
        "reference://x.jpg::/evil.json", "simplecache::http://127.0.0.1/x.jpg", "https://x/a.jpg::file:///etc/passwd",
        "s3://bucket/x::file:///etc/passwd", "https://user:password@example.com/a.jpg", "https://user@example.com/a.jpg",
        "s3://key:secret@bucket/a.jpg", "az://name:secret@account/a.jpg", "https:///a.jpg", "https://exa mple.com/a.jpg",
        "https://example.com/a\r\nHost: x", "https://[::1/a.jpg", "HTTPS://user:password@example.com/a.jpg",
    ],
)  # fmt: skip
def test_no_chain_no_user_and_no_half_url_is_read(location: str) -> None:
    with pytest.raises((ForbiddenLocation, FileNotFoundError)):  # a path, where fsspec would see a chain
        read_bytes(location, 100)


@given(st.ip_addresses())
def test_public_addresses_are_those_of_the_internet(address: Any) -> None:
    assert not web.is_public(str(address)) or (address.is_global and not address.is_multicast)


PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",  # noqa: S104
    "255.255.255.255",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
    "2002:7f00:1::1", "224.0.0.1", "ff02::1", "64:ff9b:1::7f00:1", "fec0::1", "::127.0.0.1", "::10.0.0.1",
    "::ffff:0:127.0.0.1", "192.0.0.192", "168.63.129.16",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not web.is_public(address)


class Server:
    """A server of the test's own, with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.redirect = ""
        self.picture = b""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                self.send_response(302 if server.redirect else 200)
                if server.redirect:
                    self.send_header("Location", server.redirect)
                self.end_headers()
                self.wfile.write(server.picture)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two servers on this machine; both give an image, or redirect."""
    both = (Server(), Server())
    for server in both:
        server.picture = photo(tmp_path / "served.png").read_bytes()
    yield both
    for server in both:
        server.http.shutdown()
        server.http.server_close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]"])
def test_a_private_address_is_asked_nothing(servers: tuple[Server, Server], name: str) -> None:
    """By number, by name, and in the forms that resolvers read as numbers."""
    port = servers[0].http.server_port
    with pytest.raises(ForbiddenLocation, match=r"private address .*--allow-private"):
        read_bytes(f"http://{name}:{port}/a.png", 1 << 20)
    with pytest.raises(ForbiddenLocation), open_stream(f"http://{name}:{port}/a.tar"):
        pass
    assert servers[0].asked == []


def test_the_user_may_allow_them(servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGIMGSEARCH_ALLOW_PRIVATE", "1")
    assert read_bytes(f"{servers[0].url}/a.png", 1 << 20) == servers[0].picture


def test_a_redirect_is_checked_like_the_first_address(
    servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first server stands for one of the internet, and sends its visitors to a private one, or to a file."""
    first, second = servers
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
    for target in (
        f"http://[::1]:{second.http.server_port}/secret", "http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/",
        "file:///etc/passwd", "ftp://127.0.0.1/x", "data:image/png;base64,AAAA", f"http://a:b@127.0.0.1:{first.http.server_port}/",
    ):  # fmt: skip
        first.redirect = target
        with pytest.raises((ForbiddenLocation, OSError)) as raised:
            read_bytes(f"{first.url}/a.png", 1 << 20)
        assert second.asked == []
        assert "root:" not in str(raised.value)


def test_a_name_that_changes_is_looked_up_once(servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS that answers with a public address first and with a private one afterwards."""
    answers = iter([("192.0.2.1", 80)] + [("127.0.0.1", servers[0].http.server_port)] * 9)
    monkeypatch.setattr(web.socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", next(answers))])
    monkeypatch.setattr(web, "is_public", lambda address: address == "192.0.2.1")
    monkeypatch.setattr(web, "TIMEOUT", 0.2)
    with pytest.raises((OSError, ForbiddenLocation)):
        read_bytes("http://rebinding.example/a.png", 1 << 20)
    assert servers[0].asked == []


@pytest.mark.parametrize("drips", ["head", "body"])
def test_a_whole_file_has_a_deadline_and_a_shard_none(monkeypatch: pytest.MonkeyPatch, drips: str) -> None:
    """A server that sends a little at a time, for as long as it is let."""
    monkeypatch.setenv("PGIMGSEARCH_ALLOW_PRIVATE", "1")
    monkeypatch.setattr("pgimgsearch.sources.read.DEADLINE", 0.3)
    asked, end = list[int](), threading.Event()

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):  # the test is over
            while True:
                drip(listening.accept()[0])

    def drip(client: socket.socket) -> None:
        asked.append(1)
        with client, suppress(OSError):
            client.recv(1000)
            client.sendall(b"HTTP/1.1 200 OK\r\n" + (b"" if drips == "head" else b"Content-Length: 30\r\n\r\n"))
            for number in range(30):
                client.sendall(b"X-%d: y\r\n" % number if drips == "head" else b"z")
                end.wait(0.02)
            client.sendall(b"\r\n" if drips == "head" else b"")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=[listening], daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
        with pytest.raises(web.TooSlow):
            read_bytes(url, 1 << 20)
        assert asked == [1], "it is not asked again"
        with open_stream(url) as stream:
            assert len(stream.read()) == (0 if drips == "head" else 30)
        end.set()


def test_rows_that_may_not_be_read_fail_alone(
    ingest: Ingest, connection: Connection, photos: Path, servers: tuple[Server, Server]
) -> None:
    """A list with every kind of them; no password is stored, and nothing is asked."""
    secret = photos / "a" / "00.png"
    (photos / "rows.csv").write_text(
        "url,path\n"
        + "\n".join(f"{url}," for url in (
            str(secret), f"file://{secret}", "../secret.png", f"{servers[0].url}/a.png", "reference://x.jpg::/evil.json",
            "https://someone:geheim@example.com/a.jpg", f"local://{secret}", "https://someone:p@geheim@example.com/a.jpg",
            "https://someone:ge/geheim@example.com/a.jpg", "https:/someone:geheim@example.com/a.jpg",
            "https://someone:p@geheim@example.com/a::b.jpg", "ftp://someone:p@geheim@example.com/a.jpg",
        ))
        + f"\n,{photos / 'a' / '01.png'}\n"
    )  # fmt: skip
    report = ingest(list_source(str(photos / "rows.csv")))
    assert report.counts["palette"]["failed"] == 12
    assert report.counts["palette"]["embedded"] == 1
    failures = connection.execute("select error_class, path, message from imgsearch.ingest_failure").fetchall()
    assert {row[0] for row in failures} == {"ForbiddenLocation"}
    everything = connection.execute("select to_jsonb(f)::text from imgsearch.ingest_failure f").fetchall()
    assert not [row for row in everything if "geheim" in row[0]]
    assert servers[0].asked == []


@pytest.mark.parametrize("part", ["[", "a:/", "@", "/", ":", "::", "%", "x"])
def test_no_location_is_so_long_that_a_pattern_takes_seconds(part: str) -> None:
    for location in (f"http://a.example/{part * 100_000}", f"http://x::/{part * 100_000}", part * 100_000):
        with pytest.raises(ForbiddenLocation, match="characters is not read"):
            check_location(location)
        assert len(without_user(location)) < 200
    assert "geheim" not in without_user("https://someone:geheim@example.com/" + "a" * 10_000)


@pytest.mark.parametrize(
    "path", ["../x.jpg", "a/../../x.jpg", "a/b/../../../x.jpg", "./.././x.jpg", "a/../x.jpg", "/a/s.tar/../../b/x.jpg"]
)
def test_a_stored_path_stays_inside(tmp_path: Path, path: str) -> None:
    for root in (str(tmp_path), "s3://bucket/photos"):
        with pytest.raises(ForbiddenLocation, match="leads out of"):
            stored_location(path, root)
    assert stored_location("a/..x.jpg", str(tmp_path)) == str(tmp_path / "a/..x.jpg")


def test_stored_paths_are_read_below_the_roots_that_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to("/etc")
    monkeypatch.setenv("PGIMGSEARCH_ROOTS", f"{tmp_path / 'photos'}{os.pathsep}/nowhere")
    assert stored_location("a.jpg", str(tmp_path / "photos"))
    for path, root in (("/etc/passwd", None), ("passwd", "/etc"), ("link/passwd", str(tmp_path / "photos"))):
        with pytest.raises(ForbiddenLocation, match="outside of PGIMGSEARCH_ROOTS"):
            stored_location(path, root)


def test_nothing_but_files_is_opened(tmp_path: Path) -> None:
    """A pipe without a writer would be waited for for ever."""
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_bytes(str(path), 100)


def test_a_writer_makes_no_command_of_the_owner_leave_the_folder(
    cli: Callable[..., Any], connection: Connection, photos: Path, tmp_path: Path
) -> None:
    """Stored paths that lead out are failures of a fill, for each kind of them."""
    cli("ingest", str(photos), "-m", "palette")
    outside = photo(tmp_path / "outside.png", seed=77)
    paths = ["../outside.png", "file:///etc/passwd", "reference://x::/evil.json", "http://127.0.0.1:1/x.png",
             "https://user:pw@example.com/x.png", "a/../../outside.png"]  # fmt: skip
    ids = [row[0] for row in connection.execute("select image_id from imgsearch.image order by 1").fetchall()]
    for image, path in zip(ids, paths, strict=False):
        connection.execute("update imgsearch.image set path = %s where image_id = %s", [path, image])
    done = cli("models", "add", "pdq")
    done = cli("models", "fill", "pdq")
    assert outside.exists()
    failed = dict(
        connection.execute("select path, error_class from imgsearch.ingest_failure where kind = 'failed'").fetchall()
    )
    assert failed == dict.fromkeys(paths, "ForbiddenLocation"), done.stderr
