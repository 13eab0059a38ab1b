"""The snippets of the documents, run as they stand: SQL in psql, Python and Node against the same database."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgimgsearch.database.connection import connect
from pgimgsearch.database.embedded_programs import binaries
from pgimgsearch.database.texts import cache_texts
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.indexing.after_load import after_load
from pgimgsearch.ingest import run
from pgimgsearch.sources import sidecar
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.source import ScannedFile
from tests.conftest import judge_at
from tests.server.conftest import PASSWORD, start_serving
from tests.support.images import photo
from tests.unit.test_docs import DOCUMENTS, blocks

pytestmark = pytest.mark.slow

# what a Django project sets up by itself
DJANGO = """
import os, django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict
address = conninfo_to_dict(os.environ["DATABASE_URL"])
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": address["dbname"],
                                          "USER": address["user"], "HOST": address["host"]}})
django.setup()
"""


@pytest.fixture(scope="module")
def filled(server: str, admin: Any, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database as the documents assume it: images with palette and pdq, metadata, groups, captions, an embedder."""
    admin.execute(f"create database documents template {template} owner pgimgsearch")
    url = f"postgresql://pgimgsearch@/documents?host={server}"
    folder = tmp_path_factory.mktemp("documents") / "photos"
    for number in range(12):
        photo(folder / f"{number}.png", seed=number, size=(200, 160))
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    with connect(url) as connection:
        models = [open_model(connection, name) for name in ("palette", "pdq")]
        cache_texts(connection, models[0].stored, ["red"], models[0].encoder.embed_text(["red"]))

    def in_summer(files: Iterator[ScannedFile]) -> Iterator[ScannedFile]:
        seasons = "".join(f"{number}.png,{'summer' if number % 3 else 'winter'}\n" for number in range(12))
        (folder / "seasons.csv").write_text(f"path,season\n{seasons}")
        return sidecar.with_metadata(files, sidecar.Sidecar(folder / "seasons.csv"))

    run.ingest(url, folder_source(folder), models, run.Options(workers=1), refine=in_summer)
    after_load(url, [model.stored.name for model in models], remote=False)
    serving = start_serving(url, tmp_path_factory.mktemp("embedder"))
    with connect(url) as connection:
        connection.execute("update imgsearch.image set caption = 'a red image', metadata = metadata || '{\"season\": \"summer\"}', "
                           "group_key = case when image_id % 2 = 0 then 'shirts' else 'shoes-' || image_id end")  # fmt: skip
        judge_at(url, "instances", "palette")
        connection.execute("update imgsearch.model set logit_scale = 20 where name = 'palette'")
        connection.execute("select imgsearch.connect_embedder('127.0.0.1', %s, %s)", [serving.port, PASSWORD])
    yield url
    serving.stop()
    admin.execute("drop database documents with (force)")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_sql_snippets_run_in_psql_and_answer(path: Path, filled: str) -> None:
    for block in blocks(path, "sql"):
        code = re.sub(r"--.*", "", block)
        for statement in [part.strip() for part in code.split(";") if part.strip()]:
            psql = [str(binaries() / "psql"), filled, "-X", "-v", "ON_ERROR_STOP=1", "-tA", "-c", statement]
            done = subprocess.run(psql, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            void = re.search(
                "(set|switch)_alias|judge_duplicates|cache_text|set_index|drop_model|partition_embeddings", statement
            )
            assert void or done.stdout.strip(), f"no answer: {statement}"


def snippets(language: str) -> list[str]:
    return [block for path in DOCUMENTS for block in blocks(path, language)]


@pytest.mark.parametrize("code", snippets("python"), ids=lambda code: code.splitlines()[0])
def test_python_snippets_run(code: str, filled: str, tmp_path: Path) -> None:
    program = tmp_path / "snippet.py"
    program.write_text((DJANGO if code.startswith("# Django") else "") + code)
    done = subprocess.run([sys.executable, "-W", "error::ResourceWarning", program], env=os.environ | {"DATABASE_URL": filled},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_node_snippets_run(filled: str, tmp_path: Path) -> None:
    """node-postgres, a client that we did not write."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    got = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "pg@8"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if got.returncode != 0:
        pytest.skip(f"npm cannot fetch node-postgres: {got.stderr[-200:]}")
    photo(tmp_path / "upload.png", seed=3, size=(200, 160))
    for code in snippets("js"):
        (tmp_path / "snippet.js").write_text(code)
        done = subprocess.run(["node", "snippet.js"], cwd=tmp_path, env=os.environ | {"DATABASE_URL": filled},
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["5", "3.png"]
