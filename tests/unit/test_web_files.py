"""URLs as people write them, and transfers that break off."""

import socket
import threading
from collections.abc import Iterator

import pytest

from pgimgsearch.sources import read
from pgimgsearch.sources.read import read_bytes
from pgimgsearch.sources.web import ascii_url


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
