"""Which server runs on a home: a lock that the server itself holds, and a record of where it runs.

The lock is on a file, and the server inherits its descriptor, as do its backends: it is free once the last of them
has ended, whatever ended them. A process ID says nothing by itself: it may belong to another container, or be reused.
"""

import fcntl
import json
import os
import platform
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from pgimgsearch.errors import DatabaseError

if TYPE_CHECKING:
    import psutil

SECONDS_TO_STOP = 300  # a checkpoint of gigabytes on a slow disk
SECONDS_TO_ACCEPT = 2  # for a server that holds the lock and does not listen: it was killed, or is hung
SECONDS_TO_DIE = 20  # for the backends of a server that was killed


@dataclass(frozen=True, slots=True)
class Record:
    """Where and since when the server of a home runs; ``pid`` is None until it has started."""

    home: int  # its inode: that of a copy is another
    host: str
    boot_id: str
    pid_namespace: str  # empty where the system has none
    since: str
    sockets: str
    port: int | None
    pid: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether its processes are among those we see."""
        return (self.boot_id, self.pid_namespace) == _kernel_and_namespace()

    @property
    def may_run_unseen(self) -> bool:
        """Whether it may run on a host whose locks a shared disk does not show here."""
        return self.host != platform.node() and self.boot_id != _kernel_and_namespace()[0]

    def __str__(self) -> str:
        where = f"host {self.host} (boot {self.boot_id}"
        return f"{where}{f', {self.pid_namespace}' if self.pid_namespace else ''}), since {self.since}"


def new_record(home: Path, sockets: Path, port: int | None) -> Record:
    """A record of a server that is about to be started here."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(home.stat().st_ino, platform.node(), *_kernel_and_namespace(), since, str(sockets), port)


class ServerLock:
    """The lock and the record of the server of a home. Callers hold the home's ``start.lock``."""

    def __init__(self, home: Path, data: Path) -> None:
        self._home, self._file, self._record = home, home / "server.lock", home / "server.json"
        self._guard = data / "PG_VERSION"  # of which the server holds a lock too: without this file it has no data

    def acquire(self, seconds: float = 0) -> TextIO | None:
        """Take the lock for a server that is to inherit it, waiting for so long; None where another holds it.

        Never unlock the file: that would free it for all who inherited it. Close it.
        """

        def take() -> bool:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        file = self._file.open("a")
        try:
            if _within(seconds, take):
                return file
        except OSError as error:
            file.close()
            raise DatabaseError(
                f"the file system of {self._file.parent} has no locks: {error.strerror}",
                hint="choose a folder on a local disk: export PGIMGSEARCH_HOME=/path/to/folder",
            ) from error
        file.close()
        return None

    def is_held(self) -> bool:
        """Whether a server, or what is left of one, runs."""
        if (file := self.acquire()) is None:
            return True
        file.close()
        try:
            with self._guard.open() as guard:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    def record(self) -> Record | None:
        """What the last start wrote, until the server is stopped."""
        try:
            found = Record(**json.loads(self._record.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # none, or cut short by a full disk
            return None
        is_sound = found.pid is None or (isinstance(found.pid, int) and found.pid > 0)
        return found if is_sound and found.home == self._home.stat().st_ino else None  # not that of a copied home

    def write(self, record: Record) -> None:
        """Replace the record."""
        new = self._record.with_suffix(".new")
        new.write_text(json.dumps(asdict(record)))
        new.rename(self._record)

    def clear(self) -> None:
        """Remove the record: no server is to run."""
        self._record.unlink(missing_ok=True)

    @property
    def _files(self) -> list[Path]:
        return [self._file, self._guard]

    def holders(self) -> "list[psutil.Process]":
        """The processes that hold the lock and can be seen here."""
        return processes_with(*self._files)

    def holder(self, pid: int | None) -> "psutil.Process | None":
        """The process of a PID, if it is one that holds the lock."""
        import psutil

        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if pid is not None and _has_open(process, self._files):
                return process
        return None

    def is_alive(self, record: Record) -> bool:
        """Whether the server of a record still runs; one that was killed this moment is waited for."""
        _within(SECONDS_TO_ACCEPT, lambda: _accepts(record) or self.holder(record.pid) is None)
        return self.holder(record.pid) is not None

    def end(self, pid: int | None) -> None:
        """Stop the server of a PID, or what is left of one, and wait until nobody holds the lock."""
        postmaster = self.holder(pid)
        _send(signal.SIGINT, [postmaster] if postmaster else self.holders())  # a fast shutdown
        if not _within(SECONDS_TO_STOP if postmaster else SECONDS_TO_DIE, self.is_free):
            _send(signal.SIGKILL, self.holders())  # recovery mends what this leaves
            if not _within(SECONDS_TO_DIE, self.is_free):
                raise DatabaseError(
                    f"a process that cannot be stopped holds {self._file}",
                    hint=f"find it and stop it: fuser -v '{self._file}'",
                )

    def is_free(self) -> bool:
        """The opposite of ``is_held``."""
        return not self.is_held()


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within so many seconds."""
    waits = Retrying(
        retry=retry_if_result(lambda met: not met), stop=stop_after_delay(seconds), wait=wait_fixed(0.1),
        retry_error_callback=lambda _: False,
    )  # fmt: skip
    return bool(waits(condition))


def processes_with(*files: Path) -> "list[psutil.Process]":
    """The other processes that have one of some files open."""
    import psutil

    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _has_open(process, files)]


def _accepts(record: Record) -> bool:
    """Whether somebody listens on the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(f"{record.sockets}/.s.PGSQL.{record.port or 5432}")
        except OSError:
            return False
    return True


def _send(number: signal.Signals, processes: "list[psutil.Process]") -> None:
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _has_open(process: "psutil.Process", files: Sequence[Path]) -> bool:
    import psutil

    with suppress(psutil.Error, OSError):
        names = {file.name for file in files}
        opened = [path for path in (Path(one.path) for one in process.open_files()) if path.name in names]
        there = [file for file in files if file.exists()]
        return any(path.samefile(file) for path in opened if path.exists() for file in there)
    return False


def _kernel_and_namespace() -> tuple[str, str]:
    """What tells whether a process ID means the same here and there."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")  # noqa: PTH115  (it is no path)
    except OSError:  # macOS
        asked: Any = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False
        )
        return asked.stdout.strip(), ""
