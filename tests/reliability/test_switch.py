"""A switch from 768 to 1,024 dimensions on a database that is asked and filled meanwhile, killed twice on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
import pytest

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import list_aliases
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.indexing.after_load import after_load
from pgimgsearch.ingest import run
from pgimgsearch.ingest.backfill import fill
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.open_image import open_image
from tests.models.tiny import save, tiny
from tests.support.images import photo

PICTURES, LATE = 120, 12


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """DINOv2 of both widths, with one layer of random weights."""
    import torch
    import transformers as hf

    found = {}
    for name, width in (("dinov2-base", 768), ("dinov2-large", 1024)):
        torch.manual_seed(width)
        shape = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 16, "intermediate_size": 64}
        network = hf.Dinov2Model(hf.Dinov2Config(**shape, image_size=70, patch_size=14))
        save(tmp_path / name, network, tiny(name)[1], None)
        found[name] = str(tmp_path / name)
    return found


@contextmanager
def asking(url: str) -> Iterator[tuple[list[int], list[str]]]:
    """Two clients that ask by the alias all the time: how often each was answered, and what went wrong."""
    done, answered, wrong = threading.Event(), [0, 0], list[str]()

    def ask(number: int) -> None:
        with psycopg.connect(url, autocommit=True) as own:
            while not done.is_set():
                try:
                    rows = own.execute(
                        "select s.image_id from imgsearch.similar(%s, k => 10) s", [1 + answered[number] % 100]
                    ).fetchall()
                    if len(rows) != 10:
                        wrong.append(f"{len(rows)} answers")
                    answered[number] += 1
                except psycopg.Error as error:
                    wrong.append(str(error))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answered, wrong
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_switch_under_load_that_is_killed_twice(
    url: str, tmp_path: Path, weights: dict[str, str], connection: Connection
) -> None:
    folder = tmp_path / "photos"
    for number in range(PICTURES):
        photo(folder / f"{number:03}.png", seed=number, size=(80, 80))
    old = opened(url, "dinov2-base", weights)
    ingest(url, folder, old)
    with asking(url) as (answered, wrong):
        with running(url, weights) as process:
            wait(connection, process, "select count(*) >= 20 from imgsearch.embedding_dinov2_large_1024")
            os.kill(process.pid, signal.SIGKILL)
        first = embedded(connection)
        assert 20 <= first < PICTURES
        assert meant(connection) == "dinov2-base"
        wait(connection, None, GONE)

        with psycopg.connect(url) as reading, running(url, weights) as process:
            reading.execute("lock table imgsearch.embedding_dinov2_large_1024 in row exclusive mode")
            wait(connection, process, "select count(*) > 0 from pg_stat_progress_create_index")  # it waits for us
            os.kill(process.pid, signal.SIGKILL)
        assert embedded(connection) == PICTURES
        assert meant(connection) == "dinov2-base"
        wait(connection, None, GONE)

        with running(url, weights) as process:
            for number in range(LATE):
                photo(folder / "late" / f"{number}.png", seed=1000 + number, size=(80, 80))
            ingest(url, folder, old)
            _, told = process.communicate(timeout=120)
            assert process.returncode == 0, told
        assert meant(connection) == "dinov2-large"
        new = opened(url, "dinov2-large", weights)
        fill(url, new)  # what came after the alias had moved
        assert [rollback(connection) for _ in range(2)] == ["dinov2-base", "dinov2-large"]
        before = list(answered)
        wait_for(lambda: all(now > then for now, then in zip(answered, before, strict=True)))
    assert wrong == []
    assert connection.execute("select relname from pg_class where relname ~ '__new$'").fetchall() == []
    for model in (old, new):
        compare(connection, folder, model)


# A server notices within seconds that the process it works for is gone.
GONE = "select count(*) = 0 from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())"


def wait(connection: Connection, process: "subprocess.Popen[str] | None", condition: str) -> None:
    """Until a condition is true, while a process runs."""

    def holds() -> bool:
        assert process is None or process.poll() is None, process.communicate()
        try:
            return connection.execute(condition).fetchone() == (True,)  # type: ignore[call-overload]
        except psycopg.errors.UndefinedTable:
            return False

    wait_for(holds)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def meant(connection: Connection) -> str:
    return list_aliases(connection)["default"]


def rollback(connection: Connection) -> str:
    row = connection.execute("select imgsearch.rollback_alias('default')").fetchone()
    assert row is not None
    return str(row[0])


def opened(url: str, name: str, weights: dict[str, str]) -> LoadedModel:
    with connect(url) as own:
        return open_model(own, name, Checkpoint(weights[name])).with_batch_size(8)


def ingest(url: str, folder: Path, model: LoadedModel) -> None:
    run.ingest(url, folder_source(folder), [model], run.Options(workers=2))
    after_load(url, [model.stored.name], remote=False)


def embedded(connection: Connection) -> int:
    row = connection.execute("select count(*) from imgsearch.embedding_dinov2_large_1024").fetchone()
    assert row is not None
    return int(row[0])


def running(url: str, weights: dict[str, str]) -> "subprocess.Popen[str]":
    """The command, with so little of the machine that there is some time to kill it in."""
    return subprocess.Popen(
        [sys.executable, "-m", "pgimgsearch", "--db", url, "models", "switch", "default", "--to", "dinov2-large",
         "--weights", weights["dinov2-large"], "--max-load", "0.3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def compare(connection: Connection, folder: Path, model: LoadedModel) -> None:
    """Every row is what the network makes of that file."""
    query = f"select i.path, e.embedding::text from imgsearch.image i join imgsearch.{model.stored.table_name} e using (content_id)"
    rows = connection.execute(query).fetchall()  # type: ignore[call-overload]
    assert len(rows) == PICTURES + LATE
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        prepared = [model.encoder.prepare(open_image(str(folder / path))) for path, _ in part]
        expected = model.vectors(model.encoder.embed(prepared))
        stored = np.array([[float(value) for value in text.strip("[]").split(",")] for _, text in part])
        np.testing.assert_allclose((stored * expected).sum(1), 1, atol=2e-3)
