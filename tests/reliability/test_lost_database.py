"""A database that goes away in the middle of an ingest: waited for, gone on with, and nothing lost or stored twice."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgimgsearch.database import migrate
from pgimgsearch.database import reconnect as session
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.errors import DatabaseError
from pgimgsearch.ingest import run
from pgimgsearch.ingest.item import OUTCOMES
from pgimgsearch.reporter import Reporter
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.source import ScannedFile
from tests.reliability.killable import mortal_server
from tests.support import images

FILES, TWINS = 1200, 120
CHECK = """
select (select count(*) from imgsearch.image), (select count(distinct path) from imgsearch.image),
       (select count(*) from imgsearch.content), (select count(*) from imgsearch.embedding_palette_32)
"""
WANTING = """
select count(*) from imgsearch.image i left join imgsearch.embedding_pdq_256 e using (content_id)
where e is null and not exists (select from imgsearch.ingest_failure f where f.path = i.path)
"""
END_OURS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and application_name = 'pgimgsearch'
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.many(tmp_path_factory.mktemp("many"), FILES, TWINS)


def interrupting(at: set[int], what: Callable[[], object]) -> run.Refine:
    """Do something as soon as so many files were scanned."""

    def refine(files: Iterator[ScannedFile]) -> Iterator[ScannedFile]:
        for number, file in enumerate(files):
            if number in at:
                what()
            yield file

    return refine


def ingest(url: str, folder: Path, refine: run.Refine = lambda files: files, **options: Any) -> tuple[run.Report, str]:
    told: list[str] = []
    with connect(url) as connection:
        models = [open_model(connection, name) for name in ("palette", "pdq")]
    source = folder_source(folder)
    report = run.ingest(
        url, source, models, run.Options(workers=2, **options), refine=refine, reporter=Reporter(told.append)
    )
    return report, "\n".join(told)


def assert_complete(connection: Connection, report: run.Report) -> None:
    counts = report.counts["palette"]
    assert report.status == "complete"
    assert counts["scanned"] == sum(counts[name] for name in OUTCOMES) == FILES + TWINS + 1
    assert counts["failed"] == 1
    assert connection.execute(CHECK).fetchone() == (FILES + TWINS, FILES + TWINS, FILES, FILES)
    assert connection.execute(WANTING).fetchone() == (0,)
    failed = connection.execute("select count(*) from imgsearch.ingest_failure where kind = 'failed'").fetchone()
    assert failed == (1,)


def test_connections_that_are_ended_are_opened_again(url: str, connection: Connection, many: Path) -> None:
    report, told = ingest(url, many, interrupting({3, 510, 511, 1000, 1250}, lambda: connection.execute(END_OURS)))
    assert_complete(connection, report)
    assert "the connection to the database was lost" in told
    locks = connection.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone()
    assert locks == (0,)


def test_what_was_seen_is_lost_with_a_connection_so_nothing_is_pruned(
    url: str, connection: Connection, many: Path
) -> None:
    ingest(url, many)
    connection.execute("update imgsearch.image set key = 'gone.png', path = 'gone.png' where key = '0000.png'")

    with pytest.raises(DatabaseError, match="nothing was pruned") as raised:
        ingest(url, many, interrupting({700}, lambda: connection.execute(END_OURS)), prune=True)
    assert "same command again" in str(raised.value.hint)
    images = connection.execute("select count(*) from imgsearch.image").fetchone()
    assert images == (FILES + TWINS + 1,)
    report, _ = ingest(url, many, prune=True)
    assert report.pruned == 1


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_is_killed(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:  # fmt: skip
    with mortal_server(tmp_path / "home") as server:
        migrate.upgrade(server.url)
        if comes_back:
            report, told = ingest(server.url, many, interrupting({900}, server.kill_for_a_moment))
            assert "the connection to the database was lost" in told
        else:
            ingest(server.url, many, limit=300)
            monkeypatch.setattr(session, "PATIENCE", 0.5)
            with pytest.raises(DatabaseError, match="could not be opened again") as raised:
                ingest(server.url, many, interrupting({900}, server.kill))
            assert "what was committed is kept" in str(raised.value.hint)
            server.come_back()
            report, _ = ingest(server.url, many)
            assert report.counts["palette"]["unchanged"] >= 300
        with psycopg.connect(server.url, autocommit=True) as connection:
            assert_complete(connection, report)
