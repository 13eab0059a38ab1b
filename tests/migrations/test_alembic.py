"""The operations for a project's own Alembic migrations, by the example project: up, refused, filled, switched, and down."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import list_aliases
from pgimgsearch.ingest.backfill import fill_stored
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import Checkpoint
from tests.conftest import ROOT
from tests.support.images import photo

pytestmark = pytest.mark.slow

SEEDS = (3, 4, 5, 6, 8, 10)  # drawn with enough detail for a hash
Alembic = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the example project."""
    shutil.copytree(ROOT / "examples" / "shop", tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "shop"


@pytest.fixture
def alembic(url: str, project: Path) -> Alembic:
    """The project's own ``alembic`` command."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alembic", *arguments], cwd=project, capture_output=True, text=True, check=False,
            env=os.environ | {"DATABASE_URL": url, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six images that a hash can tell."""
    for seed in SEEDS:
        photo(tmp_path / "pictures" / f"{seed}.png", seed=seed)
    return tmp_path / "pictures"


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def meant(connection: Connection) -> str | None:
    return list_aliases(connection).get("default")


def test_the_example_goes_up_and_down(
    url: str, alembic: Alembic, pictures: Path, ingest: Callable[..., Any], connection: Connection,
    cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:  # fmt: skip
    succeed(alembic("upgrade", "first_model"))
    assert meant(connection) == "palette"
    told = cli("--json", "doctor", "--no-canary")
    assert told.returncode == 0, told.stderr
    assert "declared and never loaded" in told.stdout
    ingest(pictures, "default")
    assert connection.execute("select embedded from imgsearch.coverage() where model = 'palette'").fetchone() == (6,)
    connection.execute("insert into product values (1, 'shirt', 1, '[1,2,3]')")

    succeed(alembic("upgrade", "second_model"))
    refused = alembic("upgrade", "head")
    assert refused.returncode != 0
    assert "model pdq misses 6 of 6 contents; alias default stays" in refused.stderr
    assert "pgimgsearch models fill pdq" in refused.stderr
    assert meant(connection) == "palette"
    assert connection.execute("select version_num from public.alembic_version").fetchone() == ("second_model",)

    fill_stored(url, "pdq", Checkpoint(), Placement(), max_load=1.0)
    succeed(cli("index", "build", "pdq"))
    succeed(alembic("upgrade", "head"))
    assert meant(connection) == "pdq"
    options = "select reloptions from pg_class where relname = 'embedding_pdq_256_hnsw'"
    assert connection.execute(options).fetchone() == (["m=24", "ef_construction=96"],)
    assert "No new upgrade operations detected" in succeed(alembic("check"))
    assert "fits this release" in succeed(cli("doctor"))

    succeed(alembic("downgrade", "second_model"))
    assert meant(connection) == "palette"
    assert connection.execute("select count(*) from imgsearch.images_pdq").fetchone() == (6,)
    succeed(alembic("downgrade", "base"))
    assert connection.execute("select count(*) from imgsearch.model").fetchone() == (0,)
    assert connection.execute("select count(*) from imgsearch.image").fetchone() == (6,)
    succeed(alembic("upgrade", "second_model"))  # and again, with images there and no vectors
    assert meant(connection) == "palette"


def test_revisions_are_written_and_run(
    alembic: Alembic, project: Path, pictures: Path, ingest: Callable[..., Any], connection: Connection,
    cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:  # fmt: skip
    ini = str(project / "alembic.ini")
    succeed(alembic("upgrade", "head"))
    ingest(pictures, "pdq")
    written = Path(succeed(cli("db", "revision", "-m", "add dinov3", "--add-model", "dinov3", "--config", ini)).strip())
    assert written.parent == project / "migrations" / "versions"
    assert "dim=1024" in written.read_text()  # as it stands, whatever a later catalog says
    succeed(alembic("upgrade", "head"))
    declared = "select dim, storage, backend, checkpoint, fingerprint from imgsearch.model where name = 'dinov3'"
    row = connection.execute(declared).fetchone()
    assert row is not None
    assert (row[0], row[1], row[4]) == (1024, "halfvec", None)
    refused = cli("db", "revision", "-m", "switch", "--switch", "default=dinov3", "--config", ini)
    assert (refused.returncode, "dinov3 misses 6 contents" in refused.stderr) == (5, True)
    for options in (["--switch", "default"], []):
        assert cli("db", "revision", "-m", "nothing", *options, "--config", ini).returncode == 2
    ingest(pictures, "palette")
    succeed(cli("db", "revision", "-m", "denser", "--set-index", "pdq=30,90", "--config", ini))
    succeed(alembic("upgrade", "head"))
    wanted = "select index_spec ->> 'm' from imgsearch.model where name = 'pdq'"
    assert connection.execute(wanted).fetchone() == ("30",)
    succeed(alembic("downgrade", "-1"))
    assert connection.execute(wanted).fetchone() == ("24",)  # as the migration before wished
    succeed(alembic("upgrade", "head"))
    back = Path(succeed(cli("db", "revision", "-m", "back", "--switch", "default=palette", "--drop-model", "dinov3",
                            "--config", ini)).strip())  # fmt: skip
    succeed(alembic("upgrade", "head"))
    assert (meant(connection), connection.execute(declared).fetchone()) == ("palette", None)
    succeed(alembic("downgrade", "-1"))
    assert meant(connection) == "pdq"
    assert connection.execute(declared).fetchone() == row
    assert "add_embedding_model" in back.read_text()


def test_autogenerate_writes_vectors_and_leaves_our_schema_alone(alembic: Alembic, project: Path) -> None:
    succeed(alembic("upgrade", "head"))
    shop = project / "shop.py"
    shop.write_text(
        shop.read_text().replace("VECTOR(3)", "VECTOR(5)").replace("import VECTOR", "import BIT, HALFVEC, VECTOR")
        + 'Table("look", metadata, Column("look_id", BigInteger, primary_key=True), Column("style", HALFVEC(8)), '
        'Column("hash", BIT(64)))\n'
    )
    succeed(alembic("revision", "--autogenerate", "-m", "looks"))
    (written,) = (project / "migrations" / "versions").glob("*looks.py")
    text = written.read_text()
    assert "pgvector.sqlalchemy.HALFVEC(8)" in text
    assert "pgvector.sqlalchemy.BIT(64)" in text
    assert "import pgvector.sqlalchemy" in text
    assert "type_=pgvector.sqlalchemy.VECTOR(5)" in text
    assert "imgsearch" not in text
    succeed(alembic("upgrade", "head"))
    assert "No new upgrade operations detected" in succeed(alembic("check"))
    succeed(alembic("downgrade", "base"))


def test_the_operations_work_offline(alembic: Alembic, empty_url: str, connection: Connection) -> None:
    script = succeed(alembic("upgrade", "head", "--sql"))
    for statement in script.split("\n\n"):
        if statement.strip():
            connection.execute(statement)  # type: ignore[call-overload]
    assert meant(connection) == "pdq"


def test_an_unprepared_database_is_said(alembic: Alembic, connection: Connection) -> None:
    connection.execute("drop schema imgsearch cascade")
    connection.execute("create schema imgsearch")
    connection.execute("create table imgsearch.image (image_id bigint primary key)")
    done = alembic("upgrade", "head")
    assert "the database is not prepared for pgimgsearch" in done.stderr


def test_another_model_by_the_same_name_is_refused(connection: Connection) -> None:
    add = "select imgsearch.add_model('mine', {}, 'timm', 'resnet50', 'auto')"
    first = connection.execute(add.format(2048)).fetchone()
    for request in ("'none', null", "'hnsw', null", "'hnsw', 16, 20", "'ivf'"):
        with pytest.raises(psycopg.Error) as raised:
            connection.execute(f"select imgsearch.set_index('mine', {request})")  # type: ignore[call-overload]
        assert raised.value.sqlstate == "PI008"
    assert connection.execute(add.format(2048)).fetchone() == first
    with pytest.raises(psycopg.Error, match="mine already exists, as 2048 dimensions, halfvec, timm, resnet50, auto"):
        connection.execute(add.format(512))
    connection.execute("select imgsearch.set_alias('front', 'mine')")
    with pytest.raises(psycopg.Error, match="front is an alias"):
        connection.execute("select imgsearch.add_model('front', 8, 'timm', 'x', 'auto')")
