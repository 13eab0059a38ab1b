"""Commands in the test's own process, which is quicker; modules that test the process itself start one."""

import io
import os
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from pgimgsearch.cli.app import main


@pytest.fixture
def cli(url: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line against the fresh database, as ``program`` does in its own process."""

    def run(*arguments: str, db: str | None = url, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {key: value for key, value in os.environ.items() if not key.startswith("PGIMGSEARCH_")}
        known |= {"PGIMGSEARCH_HOME": str(tmp_path / "home"), "PGIMGSEARCH_CONFIG": str(tmp_path / "config.toml"),
                  "COLUMNS": "200"} | ({"PGIMGSEARCH_DB": db} if db else {}) | environment  # fmt: skip
        stdout, stderr, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.dict(os.environ, known, clear=True),
            mock.patch("sys.argv", ["pgimgsearch", *arguments]),
            redirect_stdout(stdout),
            redirect_stderr(stderr),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return subprocess.CompletedProcess(["pgimgsearch", *arguments], code, stdout.getvalue(), stderr.getvalue())

    return run
