"""URLs as people write them, and transfers that break off."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from email.message import Message
from urllib.error import HTTPError, URLError

import pytest

from pgimgsearch.sources import read, silent_hosts
from pgimgsearch.sources.read import read_bytes
from pgimgsearch.sources.silent_hosts import MOST_WAITS
from pgimgsearch.sources.web import TooSlow, ascii_url


@pytest.mark.parametrize(("written", "asked"), [
    ("http://x.org/my photo.jpg", "http://x.org/my%20photo.jpg"), ("http://x.org/my%20photo.jpg", "http://x.org/my%20photo.jpg"),
    ("https://x.org/übung.jpg?q=ä b&n=1", "https://x.org/%C3%BCbung.jpg?q=%C3%A4%20b&n=1"),
    ("https://bücher.example/a.jpg", "https://xn--bcher-kva.example/a.jpg"), ("http://x.org/a.jpg#part", "http://x.org/a.jpg"),
    ("http://x.org:8080/a;b/c,d@2x.jpg", "http://x.org:8080/a;b/c,d@2x.jpg"),
])  # fmt: skip
def test_urls_are_asked_for_as_browsers_do(written: str, asked: str) -> None:
    assert ascii_url(written) == asked
    assert ascii_url(asked) == asked


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[int]]]:
    """A server whose first answers end before their time, and how many it gave."""
    monkeypatch.setenv("PGIMGSEARCH_ALLOW_PRIVATE", "1")
    monkeypatch.setattr(read._download.retry, "sleep", lambda _: None)  # type: ignore[attr-defined]
    answers: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                with client:
                    client.recv(10_000)
                    answers.append(len(answers))
                    sent = b"x" * (100 if len(answers) < 3 else 1000)
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + sent)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.jpg", answers
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_transfer_that_breaks_off_is_tried_again(breaking: tuple[str, list[int]]) -> None:
    url, answers = breaking
    assert read_bytes(url, 10_000) == b"x" * 1000
    assert len(answers) == 3
    answers.clear()
    assert len(read_bytes(url, 10_000)) == 1000
    answers.clear()
    with pytest.raises(read.TooManyBytes):
        read_bytes(url, 50)


def test_a_host_that_does_not_answer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """After three waits in a row, for a while; others are asked."""
    monkeypatch.setenv("PGIMGSEARCH_ALLOW_PRIVATE", "1")
    monkeypatch.setattr(read._download.retry, "sleep", lambda _: None)  # type: ignore[attr-defined]
    monkeypatch.setattr(read, "DEADLINE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the system takes the connections, and nobody answers
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        for number in range(MOST_WAITS):
            with pytest.raises(TooSlow, match="did not arrive"):
                read_bytes(f"{url}{number}.jpg", 100)
        with pytest.raises(TooSlow, match="3 times in a row"):
            read_bytes(f"{url}x.jpg", 100)
        with pytest.raises(TooSlow, match="did not arrive"):
            read_bytes(url.replace("127.0.0.1", "localhost"), 100)
        monkeypatch.setattr(silent_hosts, "SECONDS_ALONE", 0)
        with pytest.raises(TooSlow, match="did not arrive"):
            read_bytes(url, 100)


def test_a_host_that_says_that_a_file_is_missing_has_answered() -> None:
    hosts = silent_hosts.SilentHosts()
    answers: list[Exception | None] = [
        TimeoutError(),
        URLError(TimeoutError()),
        HTTPError("", 404, "", Message(), None),
    ]
    for answer in (*answers, *answers[:2], None, *answers[:2]):  # never three waits in a row
        with suppress(Exception), hosts.asked("http://x.example/a.jpg"):
            if answer is not None:
                raise answer
    with hosts.asked("http://x.example/b.jpg"):
        pass


ENDLESS = {
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", b"a: b\r\n"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunks of a byte": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /image\r\n\r\n", b"x" * 10_000),
}


@pytest.fixture(params=ENDLESS)
def endless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str, list[int]]]:
    """A server that begins an answer and never ends it, though it always has something to say; and what it sent."""
    monkeypatch.setenv("PGIMGSEARCH_ALLOW_PRIVATE", "1")
    monkeypatch.setattr(read, "DEADLINE", 1.5)
    start, more = ENDLESS[request.param]
    sent: list[int] = []

    def answer(client: socket.socket) -> None:
        with client, suppress(OSError):
            if b"GET /image" in client.recv(10_000):
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
                return
            client.sendall(start)
            while True:
                sent.append(client.send(more * 100))

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    threading.Thread(target=answer, args=[client]).start()

        thread = threading.Thread(target=serve)
        thread.start()
        yield request.param, f"http://127.0.0.1:{listening.getsockname()[1]}/a.jpg", sent
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_an_answer_without_end_is_given_up(endless: tuple[str, str, list[int]]) -> None:
    kind, url, sent = endless
    if kind == "redirect":
        assert read_bytes(url, 100_000_000) == b"abc"
        assert sum(sent) < 50_000_000, "the body of a redirect is not read"
    else:
        with pytest.raises(TooSlow, match="did not arrive in the time"):
            read_bytes(url, 100_000_000)
