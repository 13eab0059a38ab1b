"""The door for HTTP: texts, files one by one, jobs, health, metrics and the description."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
import psycopg
import pytest
from PIL import Image

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.models.backends.palette import COLOURS
from pgimgsearch.server.jobs import MOST_JOBS, Jobs
from tests.conftest import clone
from tests.server.blocked_model import until
from tests.server.conftest import PASSWORD, Serving, start_serving


@contextmanager
def client_of(serving: Serving) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {PASSWORD}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{serving.http_port}", headers=headers, timeout=60) as made:
        yield made


def store_palette(url: str) -> str:
    with connect(url) as opened:
        open_model(opened, "palette")
    return url


@pytest.fixture
def client(url: str, serve: Callable[..., Serving]) -> Iterator[httpx.Client]:
    store_palette(url)
    with client_of(serve("--queue", "64")) as made:
        yield made


@pytest.fixture(scope="module")
def lasting_client(
    admin: Connection, server: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """One embedder for all requests that change nothing."""
    for url in clone(admin, server, template):
        serving = start_serving(store_palette(url), tmp_path_factory.mktemp("served"))
        with client_of(serving) as made:
            yield made
        serving.stop()


def files(*named: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", one) for one in named]


@pytest.fixture
def navy(tmp_path: Path) -> bytes:
    Image.new("RGB", (64, 64), COLOURS["navy"]).save(tmp_path / "navy.png")
    return (tmp_path / "navy.png").read_bytes()


def test_texts(client: httpx.Client, connection: Connection, url: str) -> None:
    answer = client.post("/embed/text", json={"texts": ["navy", "gold and red"], "template": "a {}\nthe {}"})
    assert answer.status_code == 200
    with connect(url) as opened:
        expected = open_model(opened, "palette").embed_texts(["navy", "gold and red"], "a {}\nthe {}")
    assert answer.json()["dim"] == 32
    assert np.allclose(answer.json()["embeddings"], expected, atol=1e-6)
    until(lambda: connection.execute("select count(*) from imgsearch.text_embedding").fetchone() == (2,))
    kept = connection.execute("select imgsearch.text_vector('navy', template => E'a {}\\nthe {}')::real[]").fetchone()
    assert kept is not None
    assert np.allclose(kept[0], expected[0], atol=1e-6)


def test_files_stand_and_fall_alone(client: httpx.Client, navy: bytes, url: str) -> None:
    answer = client.post(
        "/embed/image", files=files(("a.png", navy), ("b.png", navy[:50]), ("empty", b""), ("c.png", navy))
    )
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [(one["file"], one["status"]) for one in results] == [
        ("a.png", "ok"), ("b.png", "failed"), ("empty", "failed"), ("c.png", "ok"),
    ]  # fmt: skip
    assert "cannot be read" in results[1]["error"]
    assert results[0]["embedding"] == results[-1]["embedding"]
    assert np.linalg.norm(results[0]["embedding"]) == pytest.approx(1)


def test_normalize_off_gives_what_the_network_gave(client: httpx.Client, navy: bytes, url: str) -> None:
    with connect(url) as opened:
        loaded = open_model(opened, "palette")
    import io

    raw = loaded.encoder.embed([loaded.encoder.prepare(Image.open(io.BytesIO(navy)).convert("RGB"))])
    answer = client.post("/embed/image", params={"normalize": "false"}, files=files(("a.png", navy)))
    assert np.allclose(answer.json()["results"][0]["embedding"], next(iter(raw.values()))[0], atol=1e-6)


def test_a_job_works_off_many_files(client: httpx.Client, navy: bytes) -> None:
    many = files(*((f"{n}.png", navy if n % 10 else b"broken") for n in range(300)))  # more than may wait
    taken = client.post("/jobs", files=many)
    assert taken.status_code == 202
    assert {key: taken.json()[key] for key in ("files", "model", "dim")} == {
        "files": 300,
        "model": "palette",
        "dim": 32,
    }
    path = f"/jobs/{taken.json()['job_id']}"
    until(lambda: client.get(path).json()["status"] == "complete")
    results = client.get(path).json()["results"]
    assert [one["file"] for one in results] == [f"{n}.png" for n in range(300)]
    assert [one["status"] for one in results] == ["ok" if n % 10 else "failed" for n in range(300)]
    assert client.get("/jobs/unknown").status_code == 404


class FullDisk:
    """A file that cannot be copied."""

    filename = "a.png"

    @property
    def file(self) -> Any:
        raise OSError(28, "No space left on device")


def test_a_job_that_cannot_be_taken_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    jobs, model = Jobs(None), mock.Mock()  # type: ignore[arg-type]
    model.stored.dim = 512
    for _ in range(MOST_JOBS + 1):  # the last would be told busy
        with pytest.raises(OSError, match="No space left"):
            asyncio.run(jobs.add(model, [FullDisk()], normalize=None))  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("send", "status"),
    [
        (lambda c: c.post("/embed/text", json={"texts": ["navy"], "model": "clip"}), 404),
        (lambda c: c.post("/embed/text", json={"texts": []}), 422),
        (lambda c: c.post("/embed/text", json={"texts": [""]}), 400),
        (lambda c: c.post("/embed/text", json={"texts": ["x" * 10_001]}), 400),
        (lambda c: c.post("/embed/text", json={"texts": ["no hue"]}), 422),
        (lambda c: c.post("/embed/text", content=b"\xff{", headers={"content-type": "application/json"}), 400),
        (
            lambda c: c.post("/embed/text", content=iter([b"{", b"}"]), headers={"content-type": "application/json"}),
            422,
        ),
        (lambda c: c.post("/embed/text", content=(b"x" * 2**20 for _ in range(17))), 413),
        (
            lambda c: c.post(
                "/embed/text", content=rb'{"texts": ["\ud800"]}', headers={"content-type": "application/json"}
            ),
            400,
        ),
        (lambda c: c.post("/embed/image"), 422),
        (lambda c: c.post("/embed/text", json={"texts": ["navy"]}, headers={"Authorization": "Bearer no"}), 401),
        (lambda c: c.post("/jobs", headers={"Authorization": ""}), 401),
        (
            lambda c: c.post(
                "/embed/text", content=b"{", headers={"Authorization": "", "content-type": "application/json"}
            ),
            401,
        ),
        (lambda c: c.get("/jobs/x", headers={"Authorization": ""}), 401),
    ],
)
def test_bad_requests_are_refused(lasting_client: httpx.Client, send: Any, status: int) -> None:
    answer = send(lasting_client)
    assert answer.status_code == status, answer.text
    assert PASSWORD not in answer.text
    assert lasting_client.get("/health").json()["status"] == "ok"


def test_it_tells_of_itself(client: httpx.Client, navy: bytes, connection: Connection) -> None:
    client.post("/embed/image", files=files(("a.png", navy), ("b.png", b"x")))
    client.post("/embed/text", json={"texts": ["navy"]})
    plain = httpx.Client(base_url=client.base_url)
    metrics = plain.get("/metrics").text
    assert 'pgimgsearch_requests_total{door="http",kind="image",outcome="ok"} 1.0' in metrics
    assert 'pgimgsearch_requests_total{door="http",kind="image",outcome="PI014"} 1.0' in metrics
    assert 'pgimgsearch_batch_inputs_count{kind="text",model="palette"} 1.0' in metrics
    assert "pgimgsearch_waiting 0.0" in metrics
    assert plain.get("/health").json()["models"][0]["model"] == "palette"
    paths = plain.get("/openapi.json").json()["paths"]
    assert {"/embed/text", "/embed/image", "/jobs", "/jobs/{job_id}", "/health", "/metrics"} <= set(paths)
    plain.close()


def test_texts_that_cannot_be_kept_are_answered_and_counted(
    client: httpx.Client, connection: Connection, admin: Connection
) -> None:
    connection.execute("alter table imgsearch.text_embedding rename to elsewhere")
    assert client.post("/embed/text", json={"texts": ["navy"]}).status_code == 200
    until(lambda: 'pgimgsearch_texts_total{outcome="lost"} 1.0' in client.get("/metrics").text)
    connection.execute("alter table imgsearch.elsewhere rename to text_embedding")
    assert client.post("/embed/text", json={"texts": ["gold"]}).status_code == 200
    until(lambda: 'pgimgsearch_texts_total{outcome="kept"} 1.0' in client.get("/metrics").text)
    with pytest.raises(psycopg.Error):
        connection.execute("select imgsearch.text_vector('navy')")
