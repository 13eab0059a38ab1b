"""A run that is killed or interrupted loses nothing that was committed, and the next one completes it."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pgimgsearch.ingest.item import OUTCOMES
from tests.support.images import photo

FILES = 3000

CHECK = """
select (select count(*) from imgsearch.image), (select count(distinct path) from imgsearch.image),
       (select count(*) from imgsearch.content), (select count(*) from imgsearch.embedding_pdq_256),
       (select count(*) from imgsearch.embedding_palette_32),
       (select count(*) from imgsearch.image i left join imgsearch.embedding_palette_32 e using (content_id) where e is null)
"""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    for number in range(FILES):
        photo(folder / f"{number:04}.png", seed=number)
    for number in range(0, FILES, 10):
        (folder / f"twin-{number:04}.png").write_bytes((folder / f"{number:04}.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"broken")
    return folder


def start(url: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PGIMGSEARCH_")}
    return subprocess.Popen(
        [sys.executable, "-m", "pgimgsearch", "--json", "ingest", str(folder), "-m", "palette", "-m", "pdq", *options],
        env=environment | {"PGIMGSEARCH_DB": url, "PGIMGSEARCH_CONFIG": os.devnull},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_images(connection: psycopg.Connection[tuple[int]], wanted: int, process: subprocess.Popen[str]) -> None:
    """Until so many images are committed, or the run is over."""
    while process.poll() is None:
        row = connection.execute("select count(*) from imgsearch.image").fetchone()
        assert row is not None
        if row[0] >= wanted:
            return


def complete(url: str, folder: Path) -> dict[str, int]:
    done = start(url, folder)
    out, err = done.communicate()
    assert done.returncode == 0, err
    rows = json.loads(out)
    for row in rows:
        assert row["scanned"] == sum(row[outcome] for outcome in OUTCOMES) == FILES + FILES // 10 + 1
    return dict(rows[0])


def test_killed_three_times_ends_complete(url: str, many: Path) -> None:
    rng = random.Random(4)
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(3):
            before = connection.execute("select count(*) from imgsearch.image").fetchone()
            assert before is not None
            process = start(url, many)
            wait_for_images(connection, before[0] + rng.randint(1, 300), process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        committed = connection.execute("select count(*) from imgsearch.image").fetchone()
        assert committed is not None
        last = complete(url, many)
        assert last["unchanged"] >= committed[0] - 1
        total = FILES + FILES // 10
        assert connection.execute(CHECK).fetchone() == (total, total, FILES, FILES, FILES, 0)
        assert connection.execute("select count(*) from imgsearch.ingest_failure").fetchone() == (1,)
        states = connection.execute("select array_agg(status order by run_id) from imgsearch.ingest_run").fetchone()
        assert states == (["interrupted", "interrupted", "interrupted", "complete"],)
        assert complete(url, many)["unchanged"] == total


def test_killed_beside_live_tables_ends_complete(url: str, many: Path, tmp_path: Path) -> None:
    rng, there = random.Random(7), 20
    for number in range(there):
        photo(tmp_path / "first" / f"{number}.png", seed=FILES + number)
    first = start(url, tmp_path / "first")
    first.communicate()
    assert first.returncode == 0
    asked = "select count(*) from imgsearch.similar((select min(image_id) from imgsearch.image), 30, 'palette')"
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(2):
            before = connection.execute("select count(*) from imgsearch.image").fetchone()
            assert before is not None
            process = start(url, many, "--shadow-table")
            wait_for_images(connection, before[0] + rng.randint(1, 300), process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert connection.execute(asked).fetchone() == (there - 1,)
        complete(url, many)  # to the live tables; what is beside comes into use with it
        images, contents = there + FILES + FILES // 10, there + FILES
        assert connection.execute(CHECK).fetchone() == (images, images, contents, contents, contents, 0)
        assert connection.execute(asked).fetchone() == (30,)
        left = "select count(*) from pg_class where relname ~ '__(shadow|retired)'"
        assert connection.execute(left).fetchone() == (0,)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_keeps_and_says_what_was_done(url: str, many: Path, number: signal.Signals) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        process = start(url, many)
        wait_for_images(connection, 1, process)
        process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == 130, err
        assert "what was committed is kept" in err
        assert '"embedded"' in out
        row = connection.execute(
            "select status, (counts -> 'palette' ->> 'embedded')::int from imgsearch.ingest_run"
        ).fetchone()
        images = connection.execute("select count(*) from imgsearch.embedding_palette_32").fetchone()
        assert row is not None
        assert images is not None
        assert row == ("interrupted", images[0])
        complete(url, many)
        total = FILES + FILES // 10
        assert connection.execute(CHECK).fetchone() == (total, total, FILES, FILES, FILES, 0)
