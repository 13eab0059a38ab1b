"""Databases with dblink, and an embedder beside them."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image

from pgimgsearch.database.connection import Connection
from pgimgsearch.models.backends.palette import COLOURS
from tests.support.service import read_until

PASSWORD = "a password; with 'quotes'"


@pytest.fixture(scope="session")
def template(admin: Connection, server: str, template: str) -> str:
    """A database at the newest revision, with dblink for our role."""
    # a busy machine is no failure: the tests that end a wait set a time of their own
    admin.execute("alter role pgimgsearch set imgsearch.embedder_timeout = '5min'")
    admin.execute(f"create database dblink_template template {template} owner pgimgsearch")
    with psycopg.connect(host=server, user="postgres", dbname="dblink_template", autocommit=True) as connection:
        connection.execute("create extension dblink")
        connection.execute("grant usage on foreign data wrapper dblink_fdw to pgimgsearch")
    return "dblink_template"


@pytest.fixture
def swatches(tmp_path: Path, ingest: Callable[..., Any]) -> Path:
    """One plain image for each colour, in the database."""
    folder = tmp_path / "swatches"
    folder.mkdir()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (64, 64), rgb).save(folder / f"{name}.png")
    ingest(folder)
    return folder


@dataclass(frozen=True, slots=True)
class Serving:
    """An embedder that runs, as a user started it."""

    process: "subprocess.Popen[str]"
    port: int
    http_port: int
    password_file: Path

    def stop(self) -> None:
        """End it as a service manager does."""
        self.process.terminate()
        self.process.communicate(timeout=30)


def free_port() -> int:
    """One that nobody listens on, below those that the system gives to connections, which might take it meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def start_serving(url: str, folder: Path, *arguments: str, port: int = 0) -> Serving:
    """Run ``pgimgsearch serve`` and wait until both doors are open."""
    secret = folder / "secret"
    secret.write_text(PASSWORD + "\n")
    ports = [port or free_port(), free_port()]
    process = subprocess.Popen(
        [sys.executable, "-m", "pgimgsearch", "serve", "--port", str(ports[0]), "--http-port", str(ports[1]),
         "--password-file", str(secret), *arguments],
        env=os.environ | {"PGIMGSEARCH_DB": url, "PGIMGSEARCH_HOME": str(folder / "home")},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    read_until(process, "stop with Ctrl-C")
    return Serving(process, *ports, secret)


@pytest.fixture
def serve(url: str, tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Start embedders for the fresh database; they end with the test."""
    started = []

    def start(*arguments: str, port: int = 0) -> Serving:
        started.append(start_serving(url, tmp_path, *arguments, port=port))
        return started[-1]

    yield start
    for one in started:
        if one.process.returncode is None:
            one.stop()


@pytest.fixture
def connected(serve: Callable[..., Serving], connection: Connection) -> Serving:
    """An embedder that serves what the database holds, connected to it."""
    serving = serve()
    connection.execute("select imgsearch.connect_embedder('127.0.0.1', %s, %s)", [serving.port, PASSWORD])
    return serving
