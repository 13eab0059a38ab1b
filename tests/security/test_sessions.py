"""Sessions that are not as we need them: poolers, and settings of roles and databases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgimgsearch.database import connection as connections
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.session_settings import SETTINGS
from pgimgsearch.errors import DatabaseError
from pgimgsearch.ingest import run
from pgimgsearch.ingest.plan import Planner
from tests.support.pooler import pooler

Run = Callable[..., Any]


def test_a_pooler_in_transaction_mode_is_refused_and_keeps_nothing(
    url: str, connection: Connection, cli: Run, photos: Path
) -> None:
    cli("ingest", str(photos), "-m", "palette")
    with pooler(url, "transaction") as pooled:
        for command in (
            ["ingest", str(photos), "-m", "palette"],
            ["duplicates"],
            ["index", "build", "palette"],
            ["stats"],
        ):
            done = cli(*command, db=pooled)
            assert done.returncode == 3, done.stderr
            assert "a pooler in transaction mode" in done.stderr
            assert "give a direct connection" in done.stderr
        assert connection.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (0,)
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as application:
            for _ in range(3):
                assert application.execute("show search_path").fetchone() == ('"$user", public',)
                assert len(application.execute("select * from imgsearch.similar(1, k => 5)").fetchall()) == 5


def test_a_pooler_in_session_mode_works(url: str, cli: Run, photos: Path) -> None:
    with pooler(url, "session", size=6) as pooled:
        done = cli("ingest", str(photos), "-m", "palette", "--prune", db=pooled)
        assert done.returncode == 0, done.stderr


def test_each_chunk_checks_that_the_lock_is_held(
    url: str, connection: Connection, photos: Path, monkeypatch: pytest.MonkeyPatch, ingest: Callable[..., run.Report]
) -> None:
    """Where a pooler was not recognised, nothing is written without the lock."""
    monkeypatch.setattr(connections, "check_session", lambda *_: None)
    taken = run.lock_collection

    def take_and_lose(session: Any, collection_id: int, name: str) -> None:
        taken(session, collection_id, name)
        session.connection.execute("select pg_advisory_unlock_all()")

    monkeypatch.setattr(run, "lock_collection", take_and_lose)
    with pytest.raises(DatabaseError, match="has lost the lock"):
        ingest(photos, "palette")
    assert connection.execute("select count(*) from imgsearch.image").fetchone() == (0,)


def test_prune_acts_on_no_list_but_its_own(
    connection: Connection, photos: Path, monkeypatch: pytest.MonkeyPatch, ingest: Callable[..., run.Report]
) -> None:
    """Half of the list of seen files is lost, as when another session of a pooler remembers it."""
    ingest(photos, "palette")
    before = connection.execute("select count(*) from imgsearch.image").fetchone()
    remember = Planner._remember_seen

    def forget(self: Planner, files: Any) -> None:
        remember(self, files)
        self.connection.execute("delete from seen where key like '%1%'")

    monkeypatch.setattr(Planner, "_remember_seen", forget)
    with pytest.raises(DatabaseError, match="nothing was pruned"):
        ingest(photos, "palette", prune=True)
    assert connection.execute("select count(*) from imgsearch.image").fetchone() == before


# Every setting that a user may change, with a value that is not the usual one
STRANGE = {
    "DateStyle": "German", "TimeZone": "Asia/Kathmandu", "IntervalStyle": "sql_standard", "bytea_output": "escape",
    "search_path": "nowhere", "statement_timeout": "100", "lock_timeout": "1", "idle_in_transaction_session_timeout": "200",
    "idle_session_timeout": "200", "client_encoding": "LATIN1", "extra_float_digits": "-15", "array_nulls": "off",
    "quote_all_identifiers": "on", "default_transaction_isolation": "serializable", "row_security": "off",
    "default_transaction_deferrable": "on", "plpgsql.extra_errors": "all", "lc_numeric": "C", "xmloption": "document",
    "transform_null_equals": "on", "enable_seqscan": "off", "work_mem": "64", "jit": "on", "cursor_tuple_fraction": "1",
    "default_toast_compression": "pglz", "backslash_quote": "off",
}  # fmt: skip


@pytest.fixture
def strange(admin: Connection, url: str) -> Callable[[dict[str, str]], None]:
    """Sets settings of the test's database for every new session."""
    name = url.partition("?")[0].rpartition("/")[2]

    def apply(values: dict[str, str]) -> None:
        admin.execute(f"alter database {name} reset all")  # type: ignore[call-overload]
        for setting, value in values.items():
            admin.execute(f"alter database {name} set {setting} = '{value}'")  # type: ignore[call-overload]

    return apply


def story(cli: Run, folder: Path) -> list[tuple[Any, str]]:
    """What the commands print, but for times."""
    told = []
    for command in (
        ["ingest", str(folder), "-m", "palette", "--json"], ["ingest", str(folder), "-m", "palette", "--prune", "--json"],
        ["search", "--id", "1", "--json"], ["search", "--text", "red", "--json"], ["models", "list", "--json"],
        ["duplicates", "--model", "palette", "--threshold", "0.9", "--json"], ["index", "build", "palette"],
        ["models", "switch", "default", "--to", "palette"], ["stats"], ["doctor"],
    ):  # fmt: skip
        done = cli(*command)
        assert "Traceback" not in done.stderr, (command, done.stderr)
        assert done.returncode in {0, 1}, (command, done.stderr)
        told.append((done.returncode, done.stdout if command[0] == "search" else ""))
    return told


def test_settings_of_a_database_change_nothing(
    strange: Callable[[dict[str, str]], None], cli: Run, photos: Path, connection: Connection
) -> None:
    plain = story(cli, photos)
    assert all(code == 0 for code, _ in plain)
    connection.execute("truncate imgsearch.image, imgsearch.content, imgsearch.collection restart identity cascade")
    strange(STRANGE)
    assert story(cli, photos) == plain


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.sets(st.sampled_from(sorted(STRANGE)), min_size=1, max_size=4))
def test_our_sessions_read_and_write_values_alike(
    strange: Callable[[dict[str, str]], None], url: str, chosen: set[str]
) -> None:
    strange({name: STRANGE[name] for name in chosen})
    with connect(url) as opened:
        row = opened.execute(
            "select %s::bytea, timestamptz '2026-01-02 03:04:05+00', interval '-1 day 2 hours', 0.1::float8, "
            "array['a', null], '' || 'ä€'::text", [b"\x00\xff"]
        ).fetchone()  # fmt: skip
        set_by_us = dict(
            opened.execute("select name, setting from pg_settings where name = any(%s)", [list(SETTINGS)]).fetchall()
        )
    assert set_by_us == {name: value for name, value in SETTINGS.items() if name in set_by_us}
    assert row is not None
    assert row[0] == b"\x00\xff"
    assert row[1].isoformat() == "2026-01-02T03:04:05+00:00"
    assert row[3:] == (0.1, ["a", None], "ä€")


def test_a_read_only_role_is_told_the_setting(
    strange: Callable[[dict[str, str]], None], cli: Run, photos: Path
) -> None:
    strange({"default_transaction_read_only": "on"})
    done = cli("ingest", str(photos), "-m", "palette")
    assert done.returncode != 0
    assert "default_transaction_read_only" in done.stderr
