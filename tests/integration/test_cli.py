"""The command line as a user meets it: results, talk, errors with a way out, and what it does not import."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pgimgsearch.cli.app import app, settle_settings
from pgimgsearch.database.connection import Connection
from tests.support.imported import heavy_modules

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["ingest", "{tmp}/nowhere", "-m", "palette"], 6, "No such file", "exists"),
        (["ingest", "{tmp}/empty", "-m", "palette"], 6, "there are no images", "some"),
        (["ingest", "{tmp}/empty", "-m", "palette", "--dry-run"], 6, "there are no images", "some"),
        (["ingest"], 2, "nothing to ingest", "--model dinov3"),
        (["ingest", "{photos}"], 2, "no model was named", "--model"),
        (["ingest", "{photos}", "-m", "dinov4"], 5, "unknown model: dinov4", "did you mean dinov3"),
        (
            ["ingest", "{photos}", "-m", "pdq", "-m", "palette", "--weights", "x"],
            2,
            "exactly one",
            "models add",
        ),
        (
            ["ingest", "--from-sql", "select 1 as nothing", "-m", "palette"],
            6,
            "neither path nor url",
            "column",
        ),
        (["ingest", "--list", "nowhere.csv", "-m", "palette"], 6, "No such file", "exists"),
        (["ingest", "--from-sql", "selekt", "-m", "palette"], 3, "syntax error", ""),
        (["search", "--text", "red"], 5, "unknown model or alias: text", "ingest"),
        (["search"], 2, "give one of", "--text"),
        (["ingest", "{photos}", "-m", "palett", "--dry-run"], 5, "unknown model: palett", "palette"),
        (["ingest", "{photos}", "--list", "-", "--prune", "-m", "palette"], 2, "--prune with a list", "deleted"),
        (["ingest", "{photos}", "-m", "palette", "--ray-workers", "2"], 2, "belongs to --engine ray", "--workers"),
        (["search", "--id", "1", "--filter", "{oops"], 2, "not valid JSON", "--filter"),
        (["models", "show", "dinov4"], 5, "unknown model: dinov4", "dinov3"),
        (["models", "remove", "x", "-y"], 5, "unknown model or alias: x", "added"),
        (["db", "grant", "reader", "nobody"], 2, "there is no role nobody", "create role"),
        (["db", "start"], 2, "embedded", "--db"),
        (["index", "build", "x"], 5, "unknown model or alias: x", ""),
    ],
)
def test_bad_input_gets_one_line_and_a_hint(
    cli: Run, connection: Connection, tmp_path: Path, photos: Path, arguments: list[str], code: int, message: str,
    hint: str,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    done = cli(
        "--quiet",
        *(argument.format(tmp=tmp_path, photos=photos) if argument != "{oops" else argument for argument in arguments),
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) <= 2
    assert hint in lines[-1]
    assert connection.execute("select count(*) from imgsearch.image").fetchone() == (0,)


@pytest.mark.parametrize(
    ("db", "code", "message", "hint"),
    [
        ("postgresql://someone@127.0.0.1:1/x", 3, "cannot reach the database", "--db"),
        ("this is no address", 2, "not a database URL", "postgresql://"),
        ("postgres:/user:sEcReT@host/db", 2, "not a database URL", "%XX"),
        ("postgresql://user:p@sEcReT/w#rd@127.0.0.1/x", 3, "cannot reach", "%XX"),
        ("postgresql://user:sEcReT@127.0.0.1:1/x", 3, "cannot reach", "--db"),
    ],
)
def test_a_wrong_url_is_said_without_its_password(cli: Run, db: str, code: int, message: str, hint: str) -> None:
    done = cli("stats", db=db)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert hint in done.stderr
    assert "sEcReT" not in done.stderr


def test_databases_that_do_not_fit(
    cli: Run, empty_url: str, url: str, admin: Connection, server: str, connection: Connection
) -> None:
    unprepared = cli("stats", db=empty_url)
    assert unprepared.returncode == 4
    assert "pgimgsearch db upgrade" in unprepared.stderr
    admin.execute("create database without owner pgimgsearch")
    without = cli("db", "upgrade", db=f"postgresql://pgimgsearch@/without?host={server}")
    admin.execute("drop database without")
    assert without.returncode == 4
    assert "has no pgvector" in without.stderr
    assert "create extension vector" in without.stderr
    connection.execute("update imgsearch.alembic_version set version_num = '9999'")
    newer = cli("stats", db=url)
    assert newer.returncode == 4
    assert "upgraded by a newer release" in newer.stderr
    assert '"state": "bad"' in cli("--json", "doctor", db=url).stdout


def test_results_are_json_and_talk_is_not_among_them(cli: Run, photos: Path) -> None:
    done = cli("--json", "ingest", str(photos), "-m", "palette", "-m", "pdq")
    rows = json.loads(done.stdout)
    assert [row["model"] for row in rows] == ["palette", "pdq"]
    assert all(row["scanned"] == row["embedded"] == 12 for row in rows)
    assert "busy seconds" in done.stderr
    assert cli("-q", "ingest", str(photos), "-m", "palette").stderr == ""
    assert json.loads(cli("--json", "stats").stdout)["models"][0]["embedded"] == 12
    assert len(json.loads(cli("--json", "search", "--id", "1", "-k", "3").stdout)) == 3
    assert json.loads(cli("--json", "index", "status").stdout)[0]["valid"] is True
    assert cli("doctor").returncode == 0


def test_search_takes_every_limit(cli: Run, photos: Path) -> None:
    cli("ingest", str(photos), "-m", "palette", "--group-by", "folder")
    assert "no such" not in cli("search", str(photos / "a" / "00.png"), "-k", "1").stderr
    top = json.loads(
        cli(
            "--json",
            "search",
            str(photos / "a" / "00.png"),
            "-k",
            "2",
            "-c",
            "photos",
            "--exact",
            "--filter",
            "{}",
        ).stdout
    )
    assert top[0]["path"] == "a/00.png"
    assert top[0]["similarity"] > 0.99
    missing = cli("search", "--id", "777")
    assert missing.returncode == 8
    assert "no image with image_id 777" in missing.stderr


def test_ingest_from_a_query(cli: Run, photos: Path, connection: Connection) -> None:
    connection.execute("create table product (id int, image text, title text, colour text)")
    connection.execute(
        "insert into product values (1, %s, 'shirt', 'red'), (2, %s, 'hat', null)",
        [str(photos / "a/00.png"), str(photos / "a/01.png")],
    )
    query = "select image as path, id as key, title as caption, colour from product order by id"
    done = cli("--json", "ingest", "--from-sql", query, "-m", "palette", "--collection", "shop")
    assert json.loads(done.stdout)[0]["embedded"] == 2, done.stderr
    rows = connection.execute("select key, caption, metadata from imgsearch.image order by key").fetchall()
    assert rows == [("1", "shirt", {"colour": "red"}), ("2", "hat", {})]


def test_settings_by_variable_and_by_config_file(cli: Run, photos: Path, tmp_path: Path) -> None:
    assert (
        json.loads(
            cli("ingest", str(photos), "-m", "palette", PGIMGSEARCH_INGEST_LIMIT="3", PGIMGSEARCH_JSON="1").stdout
        )[0]["scanned"]
        == 3
    )
    (tmp_path / "config.toml").write_text("json = true\n[ingest]\nlimit = 5\nmodel = ['palette']\n")
    assert json.loads(cli("ingest", str(photos)).stdout)[0]["scanned"] == 5
    assert json.loads(cli("ingest", str(photos), PGIMGSEARCH_INGEST_LIMIT="4").stdout)[0]["scanned"] == 4
    assert (
        json.loads(cli("ingest", str(photos), "--limit", "2", PGIMGSEARCH_INGEST_LIMIT="4").stdout)[0]["scanned"] == 2
    )


def test_the_database_may_be_a_key_of_the_config_file(cli: Run, url: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"db = '{url}'\n")
    for command in (["stats"], ["db", "status"]):  # an option, and a group of commands
        done = cli("--json", *command, db=None)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["database"] in url


@pytest.mark.parametrize(
    ("text", "told"), [("= broken", "cannot read the config file"), ("ingest = 5", "ingest is a command, not a value")]
)
def test_a_broken_config_file_is_refused(cli: Run, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    broken = cli("stats")
    assert broken.returncode == 2
    assert told in broken.stderr


def test_a_config_file_that_is_named_and_missing_is_refused(cli: Run, tmp_path: Path) -> None:
    missing = cli("stats", PGIMGSEARCH_CONFIG=str(tmp_path / "typo.toml"))
    assert missing.returncode == 2
    assert "typo.toml" in missing.stderr


def test_a_pattern_that_the_shell_left_alone_is_expanded(cli: Run, photos: Path) -> None:
    done = cli("--json", "ingest", f"{photos}/a/*.png", "-m", "palette")
    (counts,) = json.loads(done.stdout)
    assert counts["embedded"] == len(list(photos.glob("a/*.png"))) > 1
    nothing = cli("ingest", f"{photos}/*.tif", "-m", "palette")
    assert nothing.returncode == 6
    assert f"no file matches {photos}/*.tif" in nothing.stderr


@pytest.mark.parametrize("query", ["select path from no_such_table", "select 1 as nothing", "delete from pg_class"])
def test_a_query_that_cannot_run_makes_no_collection(cli: Run, connection: Connection, query: str) -> None:
    failed = cli("ingest", "--from-sql", query, "-m", "palette", "-c", "shop")
    assert failed.returncode in {3, 6}, failed.stderr
    assert connection.execute("select count(*) from imgsearch.collection").fetchone() == (0,)


def test_a_table_with_rows_of_one_key_is_told(cli: Run, connection: Connection, photos: Path) -> None:
    connection.execute("create table product (id int, image text, price int)")
    rows = [(1, "a/00.png", 1), (2, "a/01.png", 2), (1, "a/00.png", 9)]
    connection.cursor().executemany(
        "insert into product values (%s, %s, %s)", [(key, str(photos / path), price) for key, path, price in rows]
    )
    query = "select id as key, image as path, price from product"
    for outcome in ("embedded", "unchanged"):
        done = cli("--json", "ingest", "--from-sql", query, "-m", "palette", "-c", "shop")
        (counts,) = json.loads(done.stdout)
        assert (counts["scanned"], counts[outcome], counts["failed"]) == (3, 2, 1), done.stderr
        assert connection.execute("select metadata from imgsearch.image where key = '1'").fetchone() == ({"price": 1},)
        (failure,) = connection.execute("select key, message from imgsearch.ingest_failure").fetchall()
        assert failure == ("row 3", "it says something else of 1 than an earlier row")


@pytest.mark.parametrize("url_is_given", [True, False])  # db is the URL, or the section of the commands of db
def test_every_option_is_a_variable_and_a_key_of_the_config_file_by_its_flag(url_is_given: bool) -> None:
    def walk(command: Any, path: tuple[str, ...], settings: Any) -> Iterator[tuple[Any, str, Any]]:
        for parameter in command.params:
            flag = max(parameter.opts, key=len).lstrip("-").replace("-", "_")
            if isinstance(settings, dict) and (url_is_given or flag != "db"):
                settings[flag] = "given"
            yield parameter, "_".join(["PGIMGSEARCH", *path, flag]).replace("-", "_").upper(), settings
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*path, name), settings.setdefault(name, {}) if isinstance(settings, dict) else None)

    command, defaults = typer.main.get_command(app), dict[str, Any]()
    wanted = list(walk(command, (), defaults))
    settle_settings(command, defaults)
    assert len(wanted) > 200
    for parameter, variable, settings in wanted:
        if parameter.envvar != "PGIMGSEARCH_EMBEDDER_PASSWORD_FILE":  # serve and connect-embedder share it
            assert parameter.envvar in {None, variable}, variable
        if isinstance(settings, dict) and (url_is_given or variable != "PGIMGSEARCH_DB"):
            assert settings[parameter.name] in ("given", ["given"]) or isinstance(settings[parameter.name], dict), (
                variable
            )


def test_the_embedded_database_from_scratch(program: Run, photos: Path) -> None:
    done = program("--json", "ingest", str(photos), "-m", "palette", db=None)
    assert json.loads(done.stdout)[0]["embedded"] == 12, done.stderr
    assert '"revision": "0001"' in program("--json", "db", "status", db=None).stdout
    assert program("db", "url", db=None).returncode == 3
    counted = program("db", "psql", "-c", "select count(*) from imgsearch.image", db=None)
    assert "12" in counted.stdout
    nothing = program("db", "sql", db=None)
    assert (nothing.stdout, "nothing to run" in nothing.stderr) == ("", True)
    assert program("db", "downgrade", "base", "--yes", db=None).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["models", "list"], ["stats"], ["search", "--id", "1"], ["doctor", "--no-canary"], ["db", "status"]],
)
def test_admin_commands_import_nothing_heavy(
    cli: Run, url: str, photos: Path, tmp_path: Path, arguments: list[str]
) -> None:
    cli("ingest", str(photos), "-m", "palette")
    own = {"PGIMGSEARCH_DB": url, "PGIMGSEARCH_CONFIG": os.devnull}
    assert heavy_modules(own, *arguments) == set()


def test_the_core_works_without_the_neural_libraries(url: str, photos: Path, tmp_path: Path) -> None:
    """As on a host with the small install: built-in models work, others name the command to run."""
    blocked = (
        "import sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'torch', 'torchvision', 'timm', 'open_clip', 'transformers', 'safetensors'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util as u\nreal = u.find_spec\n"
        "u.find_spec = lambda n, p=None: None if n in {'timm', 'open_clip', 'transformers', 'torch'} else real(n, p)\n"
        "from pgimgsearch.cli.app import main\nmain()"
    )
    env = {"PGIMGSEARCH_DB": url, "PGIMGSEARCH_CONFIG": os.devnull, "PATH": "/usr/bin"}

    def core(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", blocked, *arguments], capture_output=True, text=True, check=False, env=env
        )

    assert core("ingest", str(photos), "-m", "palette", "-m", "pdq").returncode == 0
    assert "a/00.png" in core("search", str(photos / "a/00.png"), "-k", "1").stdout
    refused = core("ingest", str(photos), "-m", "dinov3")
    assert refused.returncode == 5
    assert "pip install 'pgimgsearch[torch]'" in refused.stderr


@pytest.mark.parametrize("columns", ["abc", "-3", "0", "", "9" * 30, "80"])
def test_a_table_is_shown_whatever_its_width_is_said_to_be(
    photos: Path, ingest: Callable[..., Any], cli: Callable[..., Any], columns: str
) -> None:
    ingest(photos)
    done = cli("models", "list", COLUMNS=columns)
    assert done.returncode == 0, done.stderr
    assert "palette" in done.stdout


def test_an_emptied_folder_is_pruned_where_somebody_says_so(cli: Run, photos: Path, connection: Connection) -> None:
    cli("ingest", str(photos), "-m", "palette")
    for file in photos.rglob("*.png"):
        file.unlink()
    refused = cli("ingest", str(photos), "-m", "palette", "--prune")
    assert refused.returncode == 6
    assert "nothing was pruned" in refused.stderr
    assert cli("ingest", str(photos), "-m", "palette", "--prune-all").returncode == 0
    assert connection.execute("select count(*) from imgsearch.image").fetchone() == (0,)


@pytest.mark.parametrize(
    ("text", "named"), [("[ingest]\nexlude = ['x']\n", "exlude"), ("[ingst]\nlimit = 1\n", "ingst")]
)
def test_an_option_that_the_config_file_spells_wrong_is_told(cli: Run, tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    done = cli("stats")
    assert done.returncode == 2
    assert named in done.stderr


def test_why_a_query_failed_is_told(cli: Run, connection: Connection, photos: Path) -> None:
    done = cli(
        "ingest", "--from-sql", "select 'a' as path, 1 / (n - 3) as x from generate_series(1, 9) n", "-m", "palette"
    )
    assert done.returncode == 3
    assert "division by zero" in done.stderr
    twice = cli("ingest", "--from-sql", "select 'a' as path, 1 as x, 2 as x", "-m", "palette")
    assert twice.returncode == 6
    assert "two columns x" in twice.stderr


def test_what_would_do_nothing_is_refused(cli: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text(str(photos / "a" / "00.png"))
    assert cli("ingest", "--list", str(tmp_path / "l.txt"), "--exclude", "*.png", "-m", "palette").returncode == 2
    (tmp_path / "c.csv").write_text("path,description\na/00.png,x\n")
    told = cli("ingest", str(photos), "--caption-from", str(tmp_path / "c.csv"), "-m", "palette")
    assert told.returncode == 6
    assert "no column caption: description" in told.stderr
    (tmp_path / "c.csv").write_text("path,caption,caption\na/00.png,x,y\n")
    assert "twice" in cli("ingest", str(photos), "--caption-from", str(tmp_path / "c.csv"), "-m", "palette").stderr


def test_captions_in_a_list_are_lines(cli: Run, photos: Path, tmp_path: Path, connection: Connection) -> None:
    rows = [{"path": str(photos / "a" / "00.png"), "caption": ["one", "two"]},
            {"path": str(photos / "a" / "01.png"), "group": ["x"]}]  # fmt: skip
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cli("ingest", "--list", str(tmp_path / "l.jsonl"), "-m", "palette")
    assert connection.execute("select caption from imgsearch.image").fetchall() == [("one\ntwo",)]
    assert connection.execute("select message from imgsearch.ingest_failure").fetchall() == [
        ("group_key is a list or an object, and not a text",)
    ]
