"""The data folder of the embedded Postgres: make it, run a server on it, and prepare its database."""

import fcntl
import secrets
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import psycopg
from psycopg import sql
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from pgimgsearch.database import embedded_programs as programs
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.database.server_lock import SECONDS_TO_DIE, SECONDS_TO_STOP, Record
from pgimgsearch.errors import DatabaseError, DiskFullError

MAJOR = 18
DATABASE = "pgimgsearch"
ROLE = "pgimgsearch"
EXTENSIONS = ("vector", "dblink")  # only a superuser may create them here
# The parallel workers of an index build share their memory through /dev/shm on Linux.
OPTIONS = {"password_encryption": "scram-sha-256", "max_wal_size": "4GB", "unix_socket_permissions": "0700"}


def initialise(data: Path, secret: Path, record: Record, lock: TextIO) -> None:
    """Make the cluster, our role and our database in a temporary folder, which is renamed once it is complete."""
    for leftover in data.parent.glob("new-*"):  # of starts that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    building = data.with_name(f"new-{secrets.token_hex(4)}")
    building.mkdir(mode=0o700)
    programs.open_for_server()
    programs.give_to_server(building)
    programs.run(
        "initdb", "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-locale",
        "--username=postgres", "--pgdata=.", folder=building, keep=[lock],
    )  # fmt: skip
    password = secrets.token_urlsafe(24)
    secret.touch(mode=0o600)
    secret.write_text(password)
    sockets = str(building) if record.sockets == str(data) else record.sockets
    alone = replace(record, sockets=sockets, port=None)
    launch(building, alone, lock)
    try:
        role, database = sql.Identifier(ROLE), sql.Identifier(DATABASE)
        with superuser(alone) as connection:
            connection.execute(
                sql.SQL("create role {} login createrole password {}").format(role, sql.Literal(password))
            )
            connection.execute(sql.SQL("create database {} owner {}").format(database, role))
    finally:
        programs.run("pg_ctl", "stop", "-w", "-t", str(SECONDS_TO_STOP), "-m", "fast", "-D", ".", folder=building)
    building.rename(data)


def launch(data: Path, record: Record, lock: TextIO) -> int:
    """Run a server on a data folder, which inherits the lock; its process ID."""
    with (data / "PG_VERSION").open() as guard:
        return _launch(data, record, lock, guard)


def _launch(data: Path, record: Record, lock: TextIO, guard: TextIO) -> int:
    fcntl.flock(guard, fcntl.LOCK_EX)  # free: nobody holds the lock of the home
    # locks of a server that was killed: Postgres honours them for as long as nobody reaps its process
    for leftover in (data / "postmaster.pid", *Path(record.sockets).glob(".s.PGSQL.*")):
        leftover.unlink(missing_ok=True)
    memory = machine_memory()
    options = OPTIONS | {
        # taken as it is used; of an index beyond it every page is copied from the system's cache
        "shared_buffers": f"{max(128, memory // 4)}MB",
        "effective_cache_size": f"{max(256, memory // 2)}MB",
        "listen_addresses": "127.0.0.1" if record.port else "",
        "port": str(record.port or 5432),
        "unix_socket_directories": f'"{record.sockets}"',
    }
    words = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in options.items())
    log = data / "server.log"

    # the children of a killed server take a moment to follow it
    @retry(
        retry=retry_if_result(lambda failed: failed is not None and "shared memory block" in failed),
        stop=stop_after_delay(SECONDS_TO_DIE), wait=wait_fixed(0.3),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )  # fmt: skip
    def start() -> str | None:
        log.unlink(missing_ok=True)
        done = programs.run(
            "pg_ctl", "start", "-w", "-t", "300", "-D", ".", "-l", log.name, "-o", words,
            folder=data, keep=[lock, guard], check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return None
        return (log.read_text(errors="replace")[-2000:] if log.exists() else "") or done.stdout

    if (failed := start()) is not None:
        raise _start_error(failed, log)
    return int((data / "postmaster.pid").read_text().split()[0])


def create_extensions(record: Record) -> None:
    """Create or update the extensions of our database."""
    with superuser(record, DATABASE) as connection:
        stale = connection.execute(
            "select name, installed_version is null from pg_available_extensions "
            "where name = any(%s) and installed_version is distinct from default_version",
            [list(EXTENSIONS)],
        )
        for name, is_new in stale.fetchall():
            action = "create extension {} schema public" if is_new else "alter extension {} update"
            connection.execute(sql.SQL(action).format(sql.Identifier(name)))
        connection.execute(sql.SQL("grant usage on foreign data wrapper dblink_fdw to {}").format(sql.Identifier(ROLE)))


def superuser(record: Record, database: str = "postgres") -> Connection:
    """A connection of the superuser, whom only the socket lets in."""
    return psycopg.connect(
        host=record.sockets, port=record.port or 5432, user="postgres", dbname=database, autocommit=True,
        application_name="pgimgsearch", options="-c search_path=pg_catalog,pg_temp",
    )  # fmt: skip


def check_data(home: Path, data: Path) -> None:
    """Refuse data of another major version, or of another user."""
    found = [int(folder.name[8:]) for folder in home.glob("postgres[0-9]*") if folder.name[8:].isdigit()]
    if data.exists():
        version = (data / "PG_VERSION").read_text().strip()
        if not version.isdigit():
            raise DatabaseError(f"{data}/PG_VERSION is damaged", hint=f"it should say {MAJOR}; restore {data}")
        found = [int(version)]
    if found and MAJOR not in found:
        raise DatabaseError(
            f"{home} holds the data of PostgreSQL {max(found)}, and this version of pgimgsearch runs {MAJOR}",
            hint="pip install --upgrade pgimgsearch"
            if max(found) > MAJOR
            else "export with the version that made it; then import into another PGIMGSEARCH_HOME",
        )
    if data.exists() and data.stat().st_uid != programs.server_owner():
        raise DatabaseError(
            f"{data} belongs to another user",
            hint="run the command as its owner, or choose another folder: export PGIMGSEARCH_HOME=/path/to/folder",
        )


def _start_error(said: str, log: Path) -> DatabaseError | DiskFullError:
    if programs.found_disk_full(said):
        return DiskFullError("the embedded Postgres found the disk full", hint="free some space and try again")
    if "Address already in use" in said:
        return DatabaseError(
            "the port is taken by another program", hint="choose another: pgimgsearch db start --port 5544"
        )
    lines = said.strip().splitlines() or [""]
    telling = next((line for line in lines if "FATAL" in line), lines[-1])
    return DatabaseError(f"the embedded Postgres did not start: {telling}", hint=f"see {log}")
