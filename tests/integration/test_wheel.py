"""The wheel holds all it needs: installed elsewhere, it prepares a database and ingests."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(empty_url: str, photos: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path / "site"),
    ]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    assert "pgimgsearch/sql/20_search_engine.sql" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/")) or "__pycache__" in name]

    def installed(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pgimgsearch", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path / "site"), "PGIMGSEARCH_DB": empty_url, "PATH": os.environ["PATH"],
                 "PGIMGSEARCH_CONFIG": os.devnull},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import pgimgsearch.settings as s; print(s.package_folder('sql'))"
    shown = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, check=True, cwd=tmp_path,
                           env={"PYTHONPATH": str(tmp_path / "site")})  # fmt: skip
    assert shown.stdout.strip() == str(tmp_path / "site" / "pgimgsearch" / "sql")
    assert "create schema" in installed("db", "sql")
    installed("db", "upgrade")
    assert json.loads(installed("--json", "ingest", str(photos), "-m", "palette"))[0]["embedded"] == 12
    installed("db", "downgrade", "base", "--yes")
