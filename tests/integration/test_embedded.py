"""The embedded server: private, shared between commands, kept for others on request."""

import os
import platform
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest

from pgimgsearch.database.embedded import Embedded
from pgimgsearch.database.embedded_programs import binaries, server_owner
from pgimgsearch.database.reconnect import session
from pgimgsearch.database.server_lock import ServerLock, processes_with
from pgimgsearch.database.url import prepare_embedded
from pgimgsearch.errors import BusyError, DatabaseError, InterruptedRun
from tests.support.images import photo

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    Embedded(tmp_path / "home").stop(force=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill(server: Embedded) -> None:
    """Kill the server, and wait for its backends, which follow in a moment."""
    pid = server.record().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while ServerLock(server.home, server.data).is_held():
        pass


def run_code(home: Path, body: str) -> list[str]:
    """The command of a process that uses the server of a home."""
    code = "import os, signal, sys, psycopg; from pathlib import Path; from pgimgsearch.database.embedded import Embedded\n"
    return [sys.executable, "-c", f"{code}with Embedded(Path({str(home)!r})).running() as url:\n    {body}"]


def pgimgsearch(home: Path, *arguments: str, elsewhere: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command, ``elsewhere`` in other namespaces of processes, memory and network, as another container has."""
    inside = ["unshare", "--pid", "--ipc", "--mount-proc", "--fork", "--net"] if elsewhere else []
    return subprocess.run(
        [*inside, sys.executable, "-m", "pgimgsearch", *arguments], env=os.environ | {"PGIMGSEARCH_HOME": str(home)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def namespaces() -> None:
    probe = ["unshare", "--pid", "--ipc", "--mount-proc", "--fork", "--net", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("this system makes no namespaces for us")


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
        run_code(home, "print('up', flush=True); sys.stdin.readline()"),
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
    code = "psycopg.connect(url, autocommit=True).execute('create table kept (x int)'); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run(run_code(home, code), check=False).returncode == -9
    server = Embedded(home)
    postmaster = psutil.Process(server.record().pid)
    postmaster.kill()
    postmaster.wait(30)  # its backends follow in a moment
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
    """Of a name that nobody can put a link at before."""
    home, folders = tmp_path / ("long-" * 20), set()
    for _ in range(2):
        with Embedded(home).running() as url, psycopg.connect(url) as connection:
            folder = Path(connection.info.host)
            assert len(str(folder)) < 80
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            folders.add(folder)
        assert not folder.exists()
    assert len(folders) == 2


@pytest.mark.parametrize(
    "name", ["two words", "it's", 'a "b"', "$(touch x)`y`", "a,b", "字" * 60, "@home", "é日本", "a\\b", "%41&port=1"]
)
def test_a_home_of_any_name(tmp_path: Path, name: str) -> None:
    with Embedded(tmp_path / name).running() as url, psycopg.connect(url) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_half_made_cluster_is_made_again(home: Path) -> None:
    """Killed at any of the moments of its first start, it starts all the same afterwards."""
    for moment in ("new-*", "new-*/PG_VERSION", "new-*/postmaster.pid", "postgres18/postmaster.pid"):
        first = subprocess.Popen(run_code(home, "pass"))
        while first.poll() is None and not list(home.glob(moment)):
            pass
        first.kill()
        first.wait()
    with Embedded(home).running() as url, psycopg.connect(url) as connection:
        assert connection.execute("select extname from pg_extension where extname = 'vector'").fetchone()
    assert not list(home.glob("new-*"))


def test_twenty_kills_of_first_starts(tmp_path: Path) -> None:
    """At random: whatever is left, the next start makes a server, and nothing of a killed one runs on."""
    started = time.monotonic()
    with Embedded(tmp_path / "measured").running():
        took = time.monotonic() - started
    seed = random.randrange(1000)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for number in range(20):
        home = tmp_path / str(number % 4)
        first = subprocess.Popen(run_code(home, "pass"))
        try:
            first.wait(moments.uniform(0.1, 1.2) * took)
        except subprocess.TimeoutExpired:
            first.kill()
            first.wait()
    for number in range(4):
        server = Embedded(tmp_path / str(number))
        with server.running() as url, psycopg.connect(url) as connection:
            assert connection.execute("select count(*) from pg_extension").fetchone() == (3,)
        assert not server.is_running()
        assert not processes_with(server.home / "server.lock")


def test_a_server_of_another_container_is_left_alone(home: Path, tmp_path: Path, namespaces: None) -> None:
    photo(tmp_path / "photo.jpg", 1)
    assert pgimgsearch(home, "db", "start").returncode == 0
    assert pgimgsearch(home, "ingest", str(tmp_path), "--model", "pdq").returncode == 0
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for command in (["stats"], ["db", "stop"], ["db", "stop", "--force"], ["db", "start"]):
        done = pgimgsearch(home, *command, elsewhere=True)
        assert done.returncode == 3
        assert f"runs elsewhere: host {platform.node()} (boot {boot}, " in done.stderr
    with psycopg.connect(Embedded(home).url()) as connection:
        assert connection.execute("select count(*) from imgsearch.image").fetchone() == (1,)


def test_two_first_starts_in_two_containers(home: Path, namespaces: None) -> None:
    command = [sys.executable, "-m", "pgimgsearch", "stats"]
    inside = ["unshare", "--pid", "--ipc", "--mount-proc", "--fork", "--net"]
    both = [
        subprocess.Popen([*inside, *command], env=os.environ | {"PGIMGSEARCH_HOME": str(home)}, stderr=subprocess.PIPE,
                         stdout=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]  # fmt: skip
    ended = {(one.wait(), "runs elsewhere" in str(one.communicate()[1])) for one in both}
    assert ended <= {(0, False), (3, True)}
    assert (0, False) in ended
    with Embedded(home).running() as url, psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from imgsearch.image").fetchone() == (0,)


def test_a_process_id_of_another_server_is_not_believed(home: Path, tmp_path: Path) -> None:
    """Neither in postmaster.pid nor in a copied record is it reason to stop somebody else's server."""
    theirs = Embedded(tmp_path / "theirs")
    theirs.keep(None)
    with Embedded(home).running():
        pass
    for name in ("postgres18/postmaster.pid", "server.json"):
        shutil.copy(theirs.home / name, home / name)
    server = Embedded(home)
    assert not server.is_running()
    with server.running() as url, psycopg.connect(url) as ours, psycopg.connect(theirs.url()) as other:
        shutil.copy(theirs.data / "postmaster.pid", server.data / "postmaster.pid")
        which = "select system_identifier from pg_control_system()"
        assert ours.execute(which).fetchone() != other.execute(which).fetchone()
    assert not server.is_running()
    with psycopg.connect(theirs.url()) as other:
        assert other.execute("select 1").fetchone() == (1,)
    theirs.stop()


def test_a_home_that_was_copied_while_it_ran(home: Path, tmp_path: Path) -> None:
    server = Embedded(home)
    url = server.keep(None)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table kept (x int)")
    shutil.copytree(
        home, tmp_path / "copy", symlinks=True, ignore=lambda _, names: [n for n in names if n.startswith(".s.")]
    )
    for path in (tmp_path / "copy").rglob("*"):
        shutil.chown(path, server_owner())
    with Embedded(tmp_path / "copy").running() as copied, psycopg.connect(copied) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_a_copy_with_a_socket_folder_of_its_own(tmp_path: Path) -> None:
    """It does not take over that of the original."""
    server, copied = (Embedded(tmp_path / (letter * 90)) for letter in "ab")
    url = server.keep(None)
    shutil.copytree(server.home, copied.home, symlinks=True)
    for path in copied.home.rglob("*"):
        shutil.chown(path, server_owner())
    with copied.running() as theirs, psycopg.connect(theirs):
        assert theirs != url
    with psycopg.connect(url) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    server.stop()


@pytest.mark.parametrize("lost", ["server.lock", "server.json", "start.lock", "postgres18/postmaster.pid"])
def test_a_file_that_was_deleted_while_it_runs(home: Path, namespaces: None, lost: str) -> None:
    """Nobody starts a second server on the data, here or in another container."""
    server = Embedded(home)
    with psycopg.connect(server.keep(None), autocommit=True) as connection:
        connection.execute("create table kept (x int)")
        (home / lost).unlink()
        elsewhere = pgimgsearch(home, "stats", elsewhere=True)
        assert (elsewhere.returncode, "runs elsewhere" in elsewhere.stderr) == (3, True)
        here = pgimgsearch(home, "stats")
        assert here.returncode == (3 if lost == "server.json" else 0), here.stderr
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
    assert pgimgsearch(home, "db", "stop", "--force").returncode == 0
    with server.running() as url, psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_settings_of_libpq_are_for_other_servers(home: Path) -> None:
    theirs = {"PGHOSTADDR": "127.0.0.1", "PGPORT": "1", "PGSERVICE": "none", "PGUSER": "nobody", "PGREQUIREAUTH": "scram-sha-256",
              "PGOPTIONS": "-c default_transaction_read_only=on", "PGHOST": "none", "PGDATA": "/none"}  # fmt: skip
    for command in (["stats"], ["db", "psql", "-c", "create table kept (x int)"], ["db", "start"], ["db", "stop"]):
        done = subprocess.run(
            [sys.executable, "-m", "pgimgsearch", *command], env=os.environ | theirs | {"PGIMGSEARCH_HOME": str(home)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)


def test_a_server_on_another_host_is_forgotten_by_force_alone(home: Path) -> None:
    """A shared disk need not show the locks of the other host."""
    server = Embedded(home)
    with server.running():
        record = server.record()
    lock = ServerLock(home, server.data)
    lock.write(replace(record, host="another", boot_id="another"))
    with pytest.raises(DatabaseError, match="was not stopped elsewhere: host another"), server.running():
        pass
    with pytest.raises(DatabaseError, match="was not stopped elsewhere: host another"):
        server.stop()
    assert not server.stop(force=True)
    lock.write(replace(record, boot_id="another"))  # this host started again
    with server.running() as url, psycopg.connect(url):
        pass


def test_a_run_restarts_the_server_that_died(home: Path) -> None:
    server = Embedded(home)
    with server.running() as url:
        prepare_embedded(url)
        with session(url) as opened:
            for _ in range(2):
                kill(server)
                assert opened.run(
                    lambda: opened.connection.execute("select count(*) from imgsearch.image").fetchone()
                ) == (0,)
            assert opened.losses == 2
            server.stop(force=True)
            with pytest.raises(InterruptedRun, match="was stopped"):
                opened.run(lambda: opened.connection.execute("select 1"))


def test_stop_names_who_uses_it(home: Path) -> None:
    server = Embedded(home)
    url = server.keep(None)
    with psycopg.connect(url, application_name="shop", autocommit=True):
        done = pgimgsearch(home, "db", "stop")
        assert done.returncode == 3
        assert "in use by pgimgsearch (shop) since 20" in done.stderr
        assert "db stop --force" in done.stderr
        assert pgimgsearch(home, "db", "stop", "--force").returncode == 0
    assert not server.is_running()
    other = subprocess.Popen(
        run_code(home, "print('up', flush=True); sys.stdin.readline()"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(BusyError, match=f"pgimgsearch \\(process {other.pid}\\)"):
        server.stop()
    other.communicate("\n")


@pytest.mark.parametrize(("options", "status", "said"), [("ro", 3, "Read-only file system"), ("size=20m", 7, "full")])
def test_a_disk_that_takes_nothing(tmp_path: Path, namespaces: None, options: str, status: int, said: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = (
        f"mount -t tmpfs -o {options} none {disk} && exec {sys.executable} -m pgimgsearch --home {disk}/home stats"
    )
    done = subprocess.run(["unshare", "--mount", "bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stderr, "hint: " in done.stderr) == (status, True, True), done.stderr


def test_a_home_that_another_user_owns(home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    with Embedded(home).running():
        pass
    shutil.chown(Embedded(home).data, 65534)
    done = pgimgsearch(home, "stats")
    assert (done.returncode, "belongs to another user" in done.stderr) == (3, True)


def test_a_home_of_another_major_version(home: Path) -> None:
    for major, hint in ((19, "pip install --upgrade pgimgsearch"), (17, "export")):
        (home / f"postgres{major}").mkdir(parents=True)
        done = pgimgsearch(home, "stats")
        assert done.returncode == 3
        assert f"holds the data of PostgreSQL {major}, and this version of pgimgsearch runs 18" in done.stderr
        assert hint in done.stderr
        (home / f"postgres{major}").rmdir()


def test_binaries_are_where_we_look() -> None:
    assert {"postgres", "pg_ctl", "initdb", "psql"} <= {path.name for path in binaries().iterdir()}


def test_what_failed_is_told_though_the_server_was_stopped_meanwhile(tmp_path: Path) -> None:
    embedded = Embedded(tmp_path / "home")
    with pytest.raises(ValueError, match="what failed"), embedded.running():
        assert embedded.stop(force=True)
        raise ValueError("what failed")
    assert not embedded.is_running()
