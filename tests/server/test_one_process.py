"""``serve`` alone: it keeps the embedded database, connects it, and follows its models and aliases."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from PIL import Image

from pgimgsearch.database.embedded import Embedded
from pgimgsearch.models.backends.palette import COLOURS
from tests.server.blocked_model import until
from tests.server.conftest import free_port
from tests.support.images import photo
from tests.support.service import read_until

Command = Callable[..., str]


@pytest.fixture
def swatches(tmp_path: Path) -> Path:
    """One plain image for each colour, not ingested yet."""
    folder = tmp_path / "swatches"
    folder.mkdir()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (64, 64), rgb).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    """A home where nothing is yet."""
    yield Embedded(tmp_path / "home")
    Embedded(tmp_path / "home").stop(force=True)


@pytest.fixture
def command(embedded: Embedded) -> Command:
    """Run a command there."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pgimgsearch", "--home", str(embedded.home), *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def serving(embedded: Embedded) -> Iterator[subprocess.Popen[str]]:
    """``serve`` on it, ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pgimgsearch", "--home", str(embedded.home), "serve", "--port", str(free_port()),
         "--http-port", str(free_port())],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = read_until(process, "stop with Ctrl-C")
    assert f"database {embedded.url()}\n" in said
    assert "serving no model yet" in said
    yield process
    if process.poll() is None:
        process.terminate()
        process.communicate()


def answer(embedded: Embedded, text: str, model: str = "text") -> str | None:
    """The path of the best match, as any program would ask for it; None while the model is not served yet."""
    with psycopg.connect(embedded.url(), autocommit=True) as connection:
        try:
            row = connection.execute(
                "select path from imgsearch.search_text(%s, 1, model => %s)", [text, model]
            ).fetchone()
        except psycopg.Error as error:
            if error.sqlstate not in {"PI001", "PI002", "PI012"}:
                raise
            return None
    return row[0] if row else None


def test_text_and_images_in_a_select_from_an_empty_home(
    swatches: Path, embedded: Embedded, serving: subprocess.Popen[str], command: Command
) -> None:
    detailed = photo(swatches / "detailed.png", seed=1)
    command("ingest", str(swatches), "--model", "palette", "--model", "pdq")
    until(lambda: answer(embedded, "words that nobody cached: navy") == "navy.png")
    with psycopg.connect(embedded.url(), autocommit=True) as connection:
        for model in ("palette", "pdq"):  # also one that no alias means, as it was added meanwhile
            query = "select path from imgsearch.similar_to_image(%s, k => 1, model => %s)"
            assert connection.execute(query, [detailed.read_bytes(), model]).fetchone() == ("detailed.png",)
    serving.terminate()
    serving.communicate()
    assert serving.returncode == 0
    assert not embedded.is_running()  # it kept the database


def test_models_and_aliases_are_followed(
    swatches: Path, embedded: Embedded, serving: subprocess.Popen[str], command: Command
) -> None:
    command("ingest", str(swatches), "--model", "palette")
    until(lambda: answer(embedded, "in navy") == "navy.png")
    command("models", "add", "palette", "--as", "colours")
    command("models", "fill", "colours")
    until(lambda: answer(embedded, "in teal", "colours") == "teal.png")
    for alias in ("text", "default"):
        command("models", "alias", alias, "colours")
    assert answer(embedded, "in gold") == "gold.png"
    with psycopg.connect(embedded.url(), autocommit=True) as connection:
        connection.execute("select imgsearch.drop_model('palette')")
    until(lambda: held(embedded) == {"colours"})


def test_there_is_one_for_a_database(embedded: Embedded, serving: subprocess.Popen[str], command: Command) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "pgimgsearch", "--home", str(embedded.home), "serve", "--port", str(free_port()),
         "--http-port", str(free_port())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (
        second.returncode,
        f"runs already for the database in {embedded.home} (process {serving.pid})" in second.stderr,
    ) == (3, True)
    assert command("db", "start").strip() == embedded.url()
    assert command("db", "psql", "-c", "select 'one'", "-c", "select 'two'").count("row)") == 2


def test_a_database_that_died_is_started_again(
    swatches: Path, embedded: Embedded, serving: subprocess.Popen[str], command: Command
) -> None:
    command("ingest", str(swatches), "--model", "palette")
    until(lambda: answer(embedded, "in navy") == "navy.png")
    before = embedded.record()
    os.kill(before.pid or 0, signal.SIGKILL)
    until(lambda: embedded.record().pid not in {None, before.pid})
    assert answer(embedded, "in olive") == "olive.png"


def held(embedded: Embedded) -> set[str]:
    """The models that the embedder says it serves."""
    with psycopg.connect(embedded.url(), autocommit=True) as connection:
        return {row[0] for row in connection.execute("select model from imgsearch.embedder_status()").fetchall()}
