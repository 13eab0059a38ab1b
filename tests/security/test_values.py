"""Values that a writer stores by hand are refused by their table, or no command of the owner ends because of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import get_model
from pgimgsearch.database.thresholds import store_calibration
from pgimgsearch.duplicates import cluster, find
from pgimgsearch.evaluation.history import store_run
from pgimgsearch.evaluation.run import images_per_second
from pgimgsearch.reporter import SILENT
from tests.support.builders import add_images, add_model
from tests.support.calls import fill
from tests.support.roles import drop_roles

HUGE = "1" + "0" * 400
JSON = [
    "null", "[]", "{}", '"x"', "1e400", '{"a": 1}', '{"a": []}', '{"a": [{"b": 1}]}', f'{{"palette": {{"embedded": {HUGE}}}}}',
    '{"palette": {"embedded": "many"}}', '{"palette": {"embedded": 1000, "device": []}}', '{"palette": null}', "[[[[]]]]",
    '{"taken_at": [[["x"]]], "camera": {}}', '{"taken_at": 5, "camera": true, "latitude": "x", "origin": "x", "tags": null}',
    '{"embed palette": {"images": "x", "seconds": {}}}', '{"embed palette": {"images": 5, "seconds": 0}}',
    '{"embed palette": {"images": 1e300, "seconds": 1e-300}}',
    '{"embed palette": {"images": 1, "seconds": 1e-400}}', '{"palette": {"embedded": 1e-400}}', '{"load": {"seconds": 1e-400}}', '{"load": {"seconds": -1e15}}', '{"recall": {"value": "x"}}',
    '{"recall": {"value": null, "low": 1}}', '{"recall": {}}', '{"recall": 5}', f'{{"recall": {HUGE}}}',
]  # fmt: skip
EXTREMES: Mapping[str, Sequence[str]] = {
    "text": ["", "\x1b]8;;https://evil.example\x07", "[/b]", "../../etc/passwd", "a" * 2000, "\ufffe\U0010ffff", "default"],
    "text[]": ["{}", "{NULL}", "{{a,b},{c,d}}", "[5:6]={a,b}", '{"\x1b[2J"}'],
    "jsonb": JSON,
    "integer": ["-2147483648", "2147483647", "0", "-1"],
    "bigint": ["-9223372036854775808", "9223372036854775807", "0", "-1"],
    "real": ["NaN", "Infinity", "-Infinity", "3e38", "-1", "0"],
    "double precision": ["NaN", "Infinity", "-Infinity", "1e308", "-1e308", "-1", "0"],
    "timestamp with time zone": ["infinity", "-infinity", "4713-01-02 BC", "294276-12-31", "0001-01-03", "9999-12-29"],
    "bytea": ["", "\\x00"],
    "name": ["", "nobody", "x" * 63],
}  # fmt: skip
COMMANDS = [
    ["stats"], ["stats", "--exact"], ["plan", "--images", "100000", "--model", "palette"], ["evaluate", "--history"], ["models", "list"],
    ["duplicates", "--threshold", "0.9", "--model", "palette"], ["duplicates", "--pairs", "--threshold", "0.9", "--model", "palette"],
    ["duplicates", "--model", "palette"],
    ["cluster", "--model", "palette", "--least", "2", "--neighbours", "3"], ["index", "status"], ["doctor", "--no-canary"],
]  # fmt: skip

FINDS = {"doctor", "ingest"}  # exit code 1 tells of what they found


@pytest.fixture
def shop(url: str, connection: Connection, admin: Connection, tmp_path: Path) -> Any:
    """A row in every table that a writer may change."""
    admin.execute("create role hand login")
    connection.execute("select imgsearch.grant_access('hand', 'writer')")
    fill(url, tmp_path, "photos", range(12))
    palette = get_model(connection, "palette")
    find.find(url, palette, 0.5)
    store_calibration(
        connection, palette, 0.9, None, 0.9, 0.1, 12, {"collection": None}, collection="photos", default=False
    )
    cluster.save(connection, palette, cluster.cluster(connection, palette, 3, 2, None, SILENT))
    connection.execute("select imgsearch.judge_duplicates(1, 3, 'rejected')")
    store_run(connection, {
        "protocol": "recall", "data": "x", "model": "palette", "fingerprint": None, "options": {}, "questions": 3,
        "figures": {"recall": {"value": 0.5, "low": 0.1, "high": 0.9}}, "numbers": {}, "notes": [],
        "images_per_second": None, "query_ms": None,
    })  # fmt: skip
    yield
    drop_roles(url, "hand")


def columns(connection: Connection) -> dict[tuple[str, str], str]:
    """Table and column -> type, of all that a writer may change."""
    rows = connection.execute(
        "select c.relname, a.attname, format_type(a.atttypid, null) from pg_attribute a join pg_class c on c.oid = a.attrelid "
        "where c.relnamespace = 'imgsearch'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped "
        "and has_column_privilege('hand', c.oid, a.attnum, 'update') order by 1, 2"
    ).fetchall()
    return {(table, column): kind for table, column, kind in rows}


def test_no_value_that_a_writer_stores_ends_a_command(
    shop: None, url: str, connection: Connection, cli: Callable[..., Any], tmp_path: Path
) -> None:
    found = columns(connection)
    assert len(found) > 50
    unknown = {kind for kind in found.values() if kind not in EXTREMES} - {"halfvec", "bit", "boolean"}
    assert not unknown, "extremes of a type are missing"
    accepted, ended = 0, []
    for turn in range(max(map(len, EXTREMES.values()))):
        with psycopg.connect(url.replace("pgimgsearch@", "hand@"), autocommit=True) as writer:
            for (table, column), kind in found.items():
                values = EXTREMES.get(kind, ())
                if turn >= len(values):
                    continue
                try:
                    done = writer.execute(
                        sql.SQL("update imgsearch.{} set {} = {}").format(
                            sql.Identifier(table), sql.Identifier(column), sql.Literal(values[turn])
                        )
                    )
                except psycopg.errors.Error:
                    continue
                accepted += done.rowcount > 0
        for command in [
            *COMMANDS,
            ["export", str(tmp_path / f"{turn}.tar")],
            ["ingest", str(tmp_path / "photos"), "-m", "palette"],
        ]:
            done = cli(*command)
            if done.returncode > (command[0] in FINDS) or "Traceback" in done.stderr:
                ended.append((turn, command, done.stdout[-300:], done.stderr[-300:]))
    assert not ended, "\n".join(map(str, ended))
    assert accepted > 50


@pytest.mark.parametrize("timings", ['{"images": 1e15, "seconds": 1e-5}', '{"images": 1e15, "seconds": 1}'])
def test_no_rate_of_a_writer_ends_an_evaluation(
    shop: None, connection: Connection, cli: Callable[..., Any], timings: str
) -> None:
    connection.execute("update imgsearch.ingest_run set timings = '{}'")  # of the shop
    connection.execute(
        "insert into imgsearch.ingest_run (source, models, timings) values "
        "('evil', '{}', jsonb_build_object('embed palette', %s::jsonb))", [timings],
    )  # fmt: skip
    model = replace(get_model(connection, "palette"), backend="timm")
    assert images_per_second(connection, model) is None


def test_no_text_of_a_writer_ends_an_evaluation(
    shop: None, url: str, connection: Connection, cli: Callable[..., Any]
) -> None:
    """A long class, or a caption of many lines, which is one question each."""
    with psycopg.connect(url.replace("pgimgsearch@", "hand@"), autocommit=True) as writer:
        writer.execute(
            "update imgsearch.image set metadata = jsonb_build_object('class', image_id || repeat('A', 120000))"
        )
        writer.execute("update imgsearch.image set caption = repeat(E'red\nblue\n', 60) || repeat('red ', 30000)")
    for arguments in (["-p", "classes", "--key", "class"], ["-p", "text-to-image"]):
        done = cli("evaluate", "-m", "palette", *arguments)
        assert done.returncode in {0, 6}, done.stderr[-500:]
        assert len(done.stderr) < 20_000
    assert "of more than 20 captions" in done.stderr


@pytest.mark.parametrize("storage", ["vector", "halfvec"])
@pytest.mark.parametrize("value", [1e-30, 1e-22, 1e30])
def test_a_vector_without_a_length_is_not_stored(connection: Connection, storage: str, value: float) -> None:
    """Its similarity with any other would be infinite, or no number."""
    add_images(connection, 1)
    model = add_model(connection, "tiny", 16, storage=storage)
    with pytest.raises(psycopg.errors.Error, match=r"not_zero|out of range"):
        connection.execute(
            sql.SQL("insert into {} values (1, array_fill(%s::real, array[16])::{})").format(
                model.table, sql.SQL(storage)
            ), [value],
        )  # fmt: skip
