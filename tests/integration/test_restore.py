"""A dump of one server, restored on another by the commands of docs/operations.md, answers the same questions."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.embedded import Embedded
from pgimgsearch.database.embedded_programs import binaries
from pgimgsearch.database.models import get_model
from pgimgsearch.database.texts import cache_texts
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.indexing import methods as sizing
from pgimgsearch.indexing.build import BuildOptions, build_index
from tests.conftest import ROOT
from tests.unit.test_docs import blocks

pytestmark = pytest.mark.slow

QUESTIONS = (
    "select image_id, similarity from imgsearch.similar(3, k => 5)",
    "select image_id, similarity from imgsearch.similar(3, k => 5, model => 'pdq')",
    "select path from imgsearch.search_text('red', k => 5)",
    "select * from imgsearch.coverage(exact => true)",
    "select alias, model_name from imgsearch.alias_history order by history_id",
    "select name, fingerprint, index_method, index_spec from imgsearch.model order by 1",
)


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[str]:
    """An empty database of a role that is no superuser, on a server of its own."""
    embedded = Embedded(tmp_path / "other")
    with embedded.running():
        host = embedded.record().sockets
        with psycopg.connect(host=host, user="postgres", dbname="postgres", autocommit=True) as admin:
            admin.execute("create database restored owner pgimgsearch")
        with psycopg.connect(host=host, user="postgres", dbname="restored", autocommit=True) as admin:
            admin.execute("create extension vector")
        yield f"postgresql://pgimgsearch@/restored?host={host}"


def test_a_dump_answers_the_same_on_a_fresh_server(
    url: str, photos: Path, ingest: Callable[..., Any], connection: Connection, other_server: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ingest(photos, "palette", "pdq")
    connection.execute("select imgsearch.switch_alias('duplicates', 'palette', allow_missing => null)")
    connection.execute("create view public.shirts as select image_id, embedding from imgsearch.images_palette")
    monkeypatch.setattr(sizing, "MIN_ROWS", 1)
    connection.execute("select imgsearch.set_index('palette', 'hnsw-binary')")  # on a function that a dump has to hold
    with connect(url) as opened:
        assert build_index(opened, get_model(opened, "palette"), BuildOptions(64))
        model = open_model(opened, "palette")
        cache_texts(opened, model.stored, ["red"], model.embed_texts(["red"]))
    (commands,) = [block for block in blocks(ROOT / "docs" / "operations.md", "sh") if "pg_dump" in block]
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pgimgsearch").write_text(f'#!/bin/sh\nexec {sys.executable} -m pgimgsearch "$@"\n')
    (programs / "pgimgsearch").chmod(0o755)
    path = f"{programs}:{binaries()}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"DATABASE_URL": url, "NEW_URL": other_server, "PATH": path, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fits this release" in done.stdout
    with psycopg.connect(other_server, autocommit=True) as restored:
        for question in QUESTIONS:
            expected = connection.execute(question).fetchall()  # type: ignore[call-overload]
            assert expected, question
            assert restored.execute(question).fetchall() == expected, question  # type: ignore[call-overload]
        assert restored.execute("select count(*) from public.shirts").fetchone() == (12,)
