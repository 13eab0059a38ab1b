"""Connections: where the database is, whether it fits this program, and driver errors in our words."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.types.json import set_json_loads

from pgimgsearch.database.functions import head_revision, known_revisions, schema_fingerprint
from pgimgsearch.database.session_settings import apply_settings, check_session
from pgimgsearch.errors import (
    DatabaseError,
    DiskFullError,
    EmbedderError,
    ModelError,
    NotFoundError,
    PgImgSearchError,
    SchemaError,
    SourceError,
    UsageError,
)

Connection = psycopg.Connection[tuple[Any, ...]]

URL_FORM = "postgresql://user:password@host:5432/name, with special characters as %XX"
MIN_POSTGRES = 150000
MIN_PGVECTOR = (0, 8, 0)
SAFE_PGVECTOR = (0, 8, 5)  # 0.8.3 and 0.8.4 mended a corruption of HNSW indexes by vacuum

# The SQLSTATEs that our functions raise (sql/), by what they mean to a user.
ERROR_OF_SQLSTATE: dict[str, type[PgImgSearchError]] = {
    "PI001": ModelError,
    "PI002": ModelError,
    "PI003": NotFoundError,
    "PI004": NotFoundError,
    "PI005": NotFoundError,
    "PI006": DatabaseError,
    "PI007": ModelError,
    "PI008": UsageError,
    "PI009": ModelError,
    "PI010": EmbedderError,
    "PI011": EmbedderError,
    "PI012": EmbedderError,
    "PI013": EmbedderError,
    "PI014": SourceError,
    "PI015": ModelError,
}


@contextmanager
def connect(url: str, *, check: bool = True, own_settings: bool = True) -> Iterator[Connection]:
    """Open a connection in autocommit; ``check`` refuses a database that does not fit this program.

    Without ``own_settings`` those of the role and the database hold, for SQL that the user wrote.
    """
    with (
        translated_errors(),
        psycopg.connect(url, autocommit=True, application_name="pgimgsearch", connect_timeout=10) as connection,
    ):
        set_json_loads(_read_json, connection)
        if own_settings:
            check_session(connection, url)
            apply_settings(connection)
        if check:
            check_database(connection)
        yield connection


def _read_json(text: str | bytes) -> Any:
    """A jsonb value; one that Python's parser gives up on is its text, as one row must not end a command."""
    try:
        return json.loads(text)
    except (RecursionError, ValueError):
        return text.decode() if isinstance(text, bytes) else text


def current_revision(connection: Connection) -> str | None:
    """The revision the database is at; None before the first upgrade."""
    if connection.execute("select to_regclass('imgsearch.alembic_version')").fetchone() == (None,):
        return None
    row = connection.execute("select version_num from imgsearch.alembic_version").fetchone()
    return str(row[0]) if row else None


def pgvector_version(connection: Connection) -> tuple[int, ...] | None:
    """The version of the vector extension in this database, such as (0, 8, 5); None without it."""
    row = connection.execute("select extversion from pg_extension where extname = 'vector'").fetchone()
    return tuple(int(part) for part in row[0].split(".")) if row else None


def vector_schema(connection: Connection) -> str:
    """The schema that holds the vector extension, quoted."""
    row = connection.execute(
        "select quote_ident(n.nspname) from pg_extension e join pg_namespace n on n.oid = e.extnamespace "
        "where e.extname = 'vector'"
    ).fetchone()
    assert row is not None, "check_server ran before"
    return str(row[0])


def check_server(connection: Connection) -> None:
    """Refuse a Postgres or a pgvector that is missing or too old."""
    if connection.info.server_version < MIN_POSTGRES:
        raise SchemaError(
            f"the server is PostgreSQL {connection.info.server_version // 10000}, and 15 is the oldest that works",
            hint="name another database with --db, or leave --db out to use the embedded one",
        )
    version = pgvector_version(connection)
    if version is None:
        available = connection.execute("select 1 from pg_available_extensions where name = 'vector'").fetchone()
        raise SchemaError(
            f"database {connection.info.dbname} has no pgvector",
            hint="as an administrator run: create extension vector"
            if available
            else "install pgvector 0.8.5 or newer on the server (https://github.com/pgvector/pgvector#installation)",
        )
    if version < MIN_PGVECTOR:
        raise SchemaError(
            f"pgvector {'.'.join(map(str, version))} is too old, 0.8.0 is the oldest that works",
            hint="install a newer one on the server, then run: alter extension vector update",
        )


def check_database(connection: Connection) -> None:
    """Refuse a database that is not upgraded, or was made by another version of this program."""
    check_server(connection)
    current = current_revision(connection)
    if current is None:
        raise SchemaError(
            f"database {connection.info.dbname} is not prepared for pgimgsearch",
            hint="run: pgimgsearch db upgrade",
        )
    check_schema(connection, current)
    if current != head_revision():
        raise SchemaError(
            f"the database is at revision {current}, this program needs {head_revision()}",
            hint="run: pgimgsearch db upgrade",
        )


def check_schema(connection: Connection, revision: str | None) -> None:
    """Refuse a schema that a newer release has upgraded, or that a version before the first release has created."""
    if revision is None:
        return
    row = connection.execute("select obj_description('imgsearch.alembic_version'::regclass)").fetchone()
    stamp = row[0] if row else None
    if stamp is None or (revision in known_revisions() and stamp != f"schema {schema_fingerprint(revision)}"):
        raise SchemaError(
            "the database was created by a version before the first release, whose tables differ",
            hint="with that version run: pgimgsearch export FILE.parquet --model NAME; then import the files into a "
            "new database: pgimgsearch import FILE.parquet",
        )
    if revision not in known_revisions():
        raise SchemaError(
            f"the database is at revision {revision}, which this program does not know",
            hint="it was upgraded by a newer release: pip install --upgrade pgimgsearch",
        )


NO_PLACE = ("too many clients already", "connection slots are reserved", "too many connections for")


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn every error of the driver into one of ours, keeping its cause."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


def translate(error: psycopg.Error) -> PgImgSearchError:
    """Say a driver's error in the user's words, with the way out."""
    message = (error.diag.message_primary or str(error)).strip()
    hint = error.diag.message_hint
    if error.sqlstate in ERROR_OF_SQLSTATE:
        return ERROR_OF_SQLSTATE[error.sqlstate](message, hint=hint)
    if isinstance(error, pg.DiskFull):
        return DiskFullError(f"the disk of the database is full: {message}", hint="free some space and run it again")
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        lines = message.splitlines() or [""]
        telling = next((line for line in lines if "FATAL" in line or "failed" in line), lines[0])
        # a password with an unescaped @ or / ends up in the host's name
        telling = re.sub(r"host '[^']*'", "the host", telling.strip())
        if "No space left on device" in message:
            return DiskFullError(f"the database's disk is full: {telling}", hint="free some space and run it again")
        if any(said in message for said in NO_PLACE):
            return DatabaseError(f"the database has no connection left: {telling}",
                                 hint="end sessions that are not needed, or raise max_connections")  # fmt: skip
        return DatabaseError(f"cannot reach the database: {telling}", hint=f"check --db or PGIMGSEARCH_DB: {URL_FORM}")
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return UsageError("--db or PGIMGSEARCH_DB is not a database URL", hint=f"write it as {URL_FORM}")
    if isinstance(error, pg.InsufficientPrivilege):
        return DatabaseError(message, hint=hint or "ask the owner to run: pgimgsearch db grant writer ROLE (or reader)")
    if isinstance(error, pg.ReadOnlySqlTransaction):
        return DatabaseError(
            message,
            hint="this is a replica, or the role or the database sets "
            "default_transaction_read_only: run: alter role ROLE set default_transaction_read_only = off",
        )
    if isinstance(error, pg.QueryCanceled) and "statement timeout" in message:
        return DatabaseError(
            message,
            hint="the role or the database sets statement_timeout; raise it for this command: "
            "PGOPTIONS='-c statement_timeout=0'",
        )
    if isinstance(error, pg.LockNotAvailable):
        return DatabaseError(f"another session holds the lock: {message}", hint="run the command again later")
    if isinstance(error, pg.DependentObjectsStillExist):
        return DatabaseError(f"{message}: {error.diag.message_detail}", hint="drop what depends on it first")
    return DatabaseError(message, hint=hint or "run it again with --debug for the whole story")
