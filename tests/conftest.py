"""Real Postgres for every test: one embedded server a session, a template database, a clone a test."""

import io
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import psycopg
import pytest

from pgimgsearch.cli.app import main
from pgimgsearch.database import migrate
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.embedded import Embedded
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.evaluation.context import EvaluationRequest
from pgimgsearch.evaluation.protocols import BY_NAME
from pgimgsearch.evaluation.run import Evaluation, evaluate
from pgimgsearch.indexing.after_load import after_load
from pgimgsearch.ingest import run
from pgimgsearch.reporter import SILENT
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.source import Source
from tests.support.images import photo

ROOT = Path(__file__).parent.parent
counter = itertools.count()
hypothesis.settings.register_profile("no deadline", deadline=None)  # tests assert no times
hypothesis.settings.load_profile("no deadline")
signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup make test &` starts with it ignored
Evaluate = Callable[..., Evaluation]


@pytest.fixture(scope="session", autouse=True)
def on_torch() -> Iterator[None]:
    """Networks run where they are quickest to load; tests of exports ask for ONNX Runtime."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgimgsearch.models.load.ONNX_ON_CPUS", False)
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket folder of a running server."""
    home = tmp_path_factory.mktemp("server") / "home"
    embedded = Embedded(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pgimgsearch.database.embedded_cluster.machine_memory", lambda: 1024
        )  # MB: there are several servers
        with embedded.running():
            patch.undo()
            yield embedded.record().sockets


@pytest.fixture(scope="session")
def admin(server: str) -> Iterator[Connection]:
    """A superuser's connection."""
    yield from administer(server)


def administer(server: str) -> Iterator[Connection]:
    """A superuser's connection to a server that keeps nothing safe: no test takes the machine down."""
    with psycopg.connect(host=server, user="postgres", dbname="postgres", autocommit=True) as connection:
        print(f"PostgreSQL {connection.info.server_version}")
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(f"alter system set {setting} = off")
        connection.execute("select pg_reload_conf()")
        yield connection


@pytest.fixture(scope="session")
def empty_template(admin: Connection, server: str) -> str:
    """A database with the extension and nothing of ours."""
    admin.execute("create database empty_template owner pgimgsearch")
    with psycopg.connect(host=server, user="postgres", dbname="empty_template", autocommit=True) as connection:
        connection.execute("create extension vector")
    return "empty_template"


@pytest.fixture(scope="session")
def template(admin: Connection, server: str, empty_template: str) -> str:
    """A database at the newest revision."""
    admin.execute(f"create database full_template template {empty_template} owner pgimgsearch")
    migrate.upgrade(f"postgresql://pgimgsearch@/full_template?host={server}")
    return "full_template"


def clone(admin: Connection, server: str, template: str) -> Iterator[str]:
    name = f"test_{next(counter)}"
    admin.execute(f"create database {name} template {template} owner pgimgsearch")
    yield f"postgresql://pgimgsearch@/{name}?host={server}"
    admin.execute(f"drop database {name} with (force)")


def filled(admin: Connection, server: str, template: str, fill: Callable[[Connection], object]) -> Iterator[str]:
    """A template with what ``fill`` stores: a module's own ``template`` fixture, so that it is stored once."""
    name = f"filled_{next(counter)}"
    admin.execute(f"create database {name} template {template} owner pgimgsearch")  # type: ignore[call-overload]
    with psycopg.connect(f"postgresql://pgimgsearch@/{name}?host={server}", autocommit=True) as connection:
        fill(connection)
    yield name
    admin.execute(f"drop database {name} with (force)")  # type: ignore[call-overload]


@pytest.fixture
def url(admin: Connection, server: str, template: str) -> Iterator[str]:
    """The URL of a fresh database at the newest revision."""
    yield from clone(admin, server, template)


@pytest.fixture
def empty_url(admin: Connection, server: str, empty_template: str) -> Iterator[str]:
    """The URL of a fresh database with the extension alone."""
    yield from clone(admin, server, empty_template)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection to the fresh database, whose errors are the driver's own."""
    with psycopg.connect(url, autocommit=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real photos and weights; tests that need it skip without it."""
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set PGIMGSEARCH_TEST_DATA")
    return folder


def data_folder() -> Path:
    """Where real photos and weights are, if they are there."""
    return Path(os.environ.get("PGIMGSEARCH_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def ingest(url: str) -> Callable[..., run.Report]:
    """Ingest a folder with built-in models; options as in run.Options."""

    def ingest_folder(folder: Path, *names: str, refine: Any = lambda files: files, **options: Any) -> run.Report:
        with connect(url) as opened:
            models = [open_model(opened, name) for name in names or ("palette",)]
        source = folder if isinstance(folder, Source) else folder_source(folder)
        report = run.ingest(url, source, models, run.Options(workers=2, **options), refine=refine)
        after_load(url, [model.stored.name for model in models], remote=False)
        return report

    return ingest_folder


@pytest.fixture
def judge(url: str) -> Evaluate:
    """Evaluate by a protocol, models by name; options as in Wish."""

    return partial(judge_at, url)


def judge_at(url: str, protocol: str, *models: str, **request: Any) -> Evaluation:
    """Evaluate in silence."""
    return evaluate(
        url, BY_NAME[protocol], EvaluationRequest(models=models, **request), device="cpu", trust=False, reporter=SILENT,
    )  # fmt: skip


def values(found: Evaluation) -> dict[str, dict[str, float]]:
    """Model -> figure -> value."""
    return {result.model: {name: figure.value for name, figure in result.figures.items()} for result in found.results}


def command_environment(tmp_path: Path, db: str | None, environment: dict[str, str]) -> dict[str, str]:
    """What a command sees: a home and a config file of the test's own, and nothing of the user's settings."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("PGIMGSEARCH_")}
    config = tmp_path / "config.toml"
    config.touch()
    own = {"PGIMGSEARCH_HOME": str(tmp_path / "home"), "PGIMGSEARCH_CONFIG": str(config)}
    return known | own | {"COLUMNS": "200"} | ({"PGIMGSEARCH_DB": db} if db else {}) | environment


@pytest.fixture
def program(url: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own, as a user would, against the fresh database."""

    def run_cli(*arguments: str, db: str | None = url, **environment: str) -> subprocess.CompletedProcess[str]:
        known = command_environment(tmp_path, db, environment)
        return subprocess.run(
            [sys.executable, "-m", "pgimgsearch", *arguments],
            env=known,
            capture_output=True,
            text=True,
            check=False,
        )

    return run_cli


@pytest.fixture
def cli(url: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same in this process, which is quicker: where the process itself is not what is tested."""

    def run(*arguments: str, db: str | None = url, **environment: str) -> subprocess.CompletedProcess[str]:
        known = command_environment(tmp_path, db, environment)
        stdout, stderr, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.dict(os.environ, known, clear=True),
            mock.patch("sys.argv", ["pgimgsearch", *arguments]),
            redirect_stdout(stdout),
            redirect_stderr(stderr),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return subprocess.CompletedProcess(["pgimgsearch", *arguments], code, stdout.getvalue(), stderr.getvalue())

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 12 different images, in two subfolders."""
    folder = tmp_path / "photos"
    for number in range(12):
        photo(folder / ("a" if number < 8 else "b") / f"{number:02}.png", seed=number)
    return folder
