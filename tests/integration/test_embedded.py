"""The embedded server: private, shared between commands, kept for others on request."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgimgsearch.database.embedded import Embedded
from pgimgsearch.database.embedded_programs import binaries
from pgimgsearch.errors import DatabaseError

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    Embedded(tmp_path / "home").stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_data_and_password_are_for_their_owner_alone(home: Path) -> None:
    server = Embedded(home)
    with server.running() as url, psycopg.connect(url) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("",)
        assert connection.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() == (False,)
        folder = Path(connection.info.host)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "password").stat().st_mode) == 0o600
    assert not server.is_running()


def test_the_last_of_several_users_stops_it(home: Path) -> None:
    """Another process uses the server while this one starts and ends."""
    other = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from pgimgsearch.database.embedded import Embedded\n"
         f"with Embedded(Path({str(home)!r})).running():\n    print('up', flush=True); sys.stdin.readline()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "up\n"
    server = Embedded(home)
    with server.running() as url, psycopg.connect(url):
        pass
    assert server.is_running()
    other.communicate("\n")
    assert not server.is_running()


def test_a_killed_user_leaves_data_that_start_again(home: Path) -> None:
    code = (
        "import os, signal, psycopg; from pathlib import Path; from pgimgsearch.database.embedded import Embedded\n"
        f"with Embedded(Path({str(home)!r})).running() as url:\n"
        "    psycopg.connect(url, autocommit=True).execute('create table kept (x int)'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    server = Embedded(home)
    pid = int((server.data / "postmaster.pid").read_text().split()[0])
    os.kill(pid, 9)  # and the server dies with it
    while server.is_running():
        pass
    with server.running() as url, psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
    assert not server.is_running()


def test_kept_for_others_on_a_port_with_a_password(home: Path) -> None:
    server = Embedded(home)
    port = free_port()
    url = server.keep(port)
    assert f"127.0.0.1:{port}" in url
    with psycopg.connect(url) as connection:
        assert connection.execute("show password_encryption").fetchone() == ("scram-sha-256",)
        assert connection.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(url.replace(url.split(":")[2].split("@")[0], "wrong"))
    with server.running() as again:
        assert again == url
    assert server.is_running()
    assert server.stop()
    assert not server.stop()


def test_a_kept_server_is_not_taken_from_its_users(home: Path) -> None:
    server, port = Embedded(home), free_port()
    url = server.keep(port)
    with psycopg.connect(url) as connection:
        assert server.keep(None) == url
        with pytest.raises(DatabaseError, match=f"in use on port {port}"):
            server.keep(free_port())
        assert connection.execute("select 1").fetchone() == (1,)
    server.stop()
    with server.running(), pytest.raises(DatabaseError, match="in use without a port"):
        Embedded(home).keep(free_port())


def test_a_taken_port_is_said(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DatabaseError, match="port is taken"):
            Embedded(home).keep(taken.getsockname()[1])
    with Embedded(home).running() as url:  # the refused port is not remembered
        assert "127.0.0.1" not in url


def test_a_long_path_gets_a_short_private_socket(tmp_path: Path) -> None:
    home = tmp_path / ("long-" * 20)
    with Embedded(home).running() as url, psycopg.connect(url) as connection:
        folder = Path(connection.info.host)
        assert len(str(folder)) < 80
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_half_made_cluster_is_made_again(home: Path) -> None:
    """Killed at any moment of its first start, it starts all the same afterwards."""
    code = f"from pathlib import Path; from pgimgsearch.database.embedded import Embedded\nwith Embedded(Path({str(home)!r})).running(): pass"
    for moment in ("new-*", "new-*/PG_VERSION", "new-*/postmaster.pid"):
        first = subprocess.Popen([sys.executable, "-c", code])
        while first.poll() is None and not list(home.glob(moment)):
            pass
        first.kill()
        first.wait()
    with Embedded(home).running() as url, psycopg.connect(url) as connection:
        assert connection.execute("select extname from pg_extension where extname = 'vector'").fetchone()
    assert not list(home.glob("new-*"))


def test_binaries_are_where_we_look() -> None:
    assert {"postgres", "pg_ctl", "initdb", "psql"} <= {path.name for path in binaries().iterdir()}


def test_what_failed_is_told_though_the_server_was_stopped_meanwhile(tmp_path: Path) -> None:
    embedded = Embedded(tmp_path / "home")
    with pytest.raises(ValueError, match="what failed"), embedded.running():
        assert embedded.stop()
        raise ValueError("what failed")
    assert not embedded.is_running()
