"""10,000 generated rows through a list, a tar, Parquet and SQL: each is stored, or recorded as a failure by its key."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pgimgsearch.database.connection import Connection
from pgimgsearch.ingest import run
from pgimgsearch.sources.listing import list_source
from pgimgsearch.sources.parse import parse_sources
from pgimgsearch.sources.sql import sql_source
from tests.support.images import photo

ROWS, PICTURES = 2500, 40
DEEP: Any = "x"
for _ in range(150):
    DEEP = [DEEP]
CAPTIONS = [
    None,
    "",
    "a red door",
    "\0",
    "a\ud800b",
    "x" * 1_000_001,
    "w" * 600_000,
    "\U0001f6aa" * 300,
    "\u202e\x1b[2J",
    "'; drop",
]
VALUES: list[Any] = [
    None, 0, -1, 1.5, 10**15, 10**400, float("nan"), float("inf"), "", "NaN", "\0", "\ud800", "x" * 100_000, [], {}, [[1, None]],
    {"a": {"b": "\0"}}, {"": 1}, {"\ud800": 1}, DEEP, True, "2020-01-01", "\\u0000", {"metadata": "x"}, [float("inf")],
]  # fmt: skip
METADATA: list[Any] = [
    None,
    {},
    "",
    "oops",
    "[1]",
    "5",
    '{"a": 1}',
    '{"a": 1e999}',
    '{"a": "\\u0000"}',
    "[" * 3000,
    {"a": DEEP},
]
KEYS = [
    "k{}",
    "k{}",
    "k{}",
    "k{}" + "x" * 2600,
    "k{}" + "\u00fc" * 1200,
    "k{}\0",
    "k{}\ud800",
    "k{} ",
    "../k{}",
    "/k{}",
    "k{}\n\x1b[2J",
]


def odd(random: Random, ordinary: Any, values: list[Any]) -> Any:
    """Mostly what it usually is."""
    return random.choice(values) if random.random() < 0.4 else ordinary


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = [photo(folder / f"{number}.png", seed=number, size=(16, 16)) for number in range(PICTURES)]
    (folder / "broken.png").write_bytes(b"broken")
    return [*made, folder / "broken.png", folder / "gone.png"]


def rows(pictures: list[Path], seed: int) -> Iterator[dict[str, Any]]:
    """Keys are of one row each, and their images of many."""
    random = Random(seed)
    for number in range(ROWS):
        row = {"key": random.choice(KEYS).format(number), "path": str(random.choice(pictures))}
        if random.random() < 0.02:
            row["path"] = random.choice(
                ["", "relative.png", "file:///etc/passwd", "http://127.0.0.1:1/x.png", "nonsense://x", "/a\0b"]
            )
        yield row | {
            "caption": odd(random, "a door", CAPTIONS), "price": odd(random, 5, VALUES), "metadata": odd(random, None, METADATA),
        }  # fmt: skip


def as_list(pictures: list[Path], folder: Path, _: Connection) -> Any:
    lines = [json.dumps(row) for row in rows(pictures, 1)]
    lines[7] = '{"key": "torn", "pa'
    (folder / "list.jsonl").write_text("\n".join(lines))
    return list_source(str(folder / "list.jsonl")), None


def as_tar(pictures: list[Path], folder: Path, _: Connection) -> Any:
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for number, row in enumerate(rows(pictures, 2)):
            name = (
                row["key"]
                .replace("\0", "_0_")
                .encode("utf-8", "surrogatepass")[:80]
                .decode("utf-8", "ignore")
                .strip("/.\n \x1b[2J")
            )
            picture = pictures[number % (PICTURES + 1)].read_bytes()
            said = {name: value for name, value in row.items() if name in {"caption", "price", "metadata"}}
            for ending, data in (("png", picture), ("json", json.dumps(said).encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (source,) = parse_sources([str(folder / "rows.tar")], None)
    return source, None


def as_parquet(pictures: list[Path], folder: Path, _: Connection) -> Any:
    def text(value: Any) -> bytes | None:
        return None if value is None else str(value).encode("utf-8", "surrogatepass")

    drawn = list(rows(pictures, 3))
    data = [pictures[number % (PICTURES + 1)].read_bytes() if number % 97 else None for number in range(ROWS)]
    random = Random(3)
    table = pa.table({
        "image": data, "key": pa.array([text(row["key"]) for row in drawn], pa.binary()).view(pa.string()),
        "caption": pa.array([text(row["caption"]) for row in drawn], pa.binary()).view(pa.string()),
        "price": pa.array([odd(random, 1.0, [float("nan"), float("inf"), -0.0, 1e308, None]) for _ in drawn], pa.float64()),
        "when": pa.array([odd(random, 0, [1 << 62, -(1 << 62), None]) for _ in drawn], pa.int64()).cast(pa.timestamp("us")),
        "metadata": pa.array([text(json.dumps(row["metadata"])) for row in drawn], pa.binary()).view(pa.string()),
    })  # fmt: skip
    parquet.write_table(table, folder / "rows.parquet", row_group_size=500)
    (source,) = parse_sources([str(folder / "rows.parquet")], None)
    return source, None


def as_query(pictures: list[Path], folder: Path, connection: Connection) -> Any:
    connection.execute(
        "create table product (key text, path text, caption text, price numeric, made timestamptz, tags text[], more jsonb, "
        "raw bytea, span interval, place point)"
    )
    random = Random(4)
    with connection.cursor() as cursor:
        for row in rows(pictures, 4):
            key, path, caption = (None if value is None else value.replace("\0", "_0_").encode("utf-8", "ignore").decode()
                                  for value in (row["key"], row["path"], row["caption"]))  # fmt: skip
            cursor.execute(
                "insert into product values (%s, %s, %s, %s, %s, %s, %s, %s, %s, point(1, 2))",
                [key, path or None, caption, odd(random, "5.50", ["NaN", "Infinity", "-Infinity", "1e400", "1" * 5000, None]),
                 odd(random, "2020-01-01", ["infinity", "-infinity", "4713-01-02 BC", "294276-01-01", None]),
                 odd(random, ["a"], [[], [None], ["x" * 100_000], None]),
                 odd(random, "{}", ["[" * 3000 + "]" * 3000, '{"n": ' + "9" * 5000 + "}", '"x"', "null", '{"a": 1e400}']),
                 odd(random, None, [b"\xff"]), odd(random, "1 day", ["178000000 years", "-1 month", None])],
            )  # fmt: skip
    return sql_source(connection.info.dsn, "select * from product"), "product"


@pytest.mark.parametrize("kind", [as_list, as_tar, as_parquet, as_query])
def test_every_row_is_stored_or_recorded(
    kind: Callable[..., Any],
    pictures: list[Path],
    ingest: Callable[..., run.Report],
    connection: Connection,
    tmp_path: Path,
) -> None:
    source, collection = kind(pictures, tmp_path, connection)
    report = ingest(source, "palette", collection=collection)
    assert report.status == "complete"
    counts = report.counts["palette"]
    # beside the rows, texts of a tar that are too long fail by their own names
    texts = connection.execute("select count(*) from imgsearch.ingest_failure where key like '%%.json'").fetchone()
    assert texts is not None
    total = ROWS + texts[0]
    assert counts["scanned"] == total == sum(number for outcome, number in counts.items() if outcome != "scanned")
    row = connection.execute(
        "select (select count(*) from imgsearch.image), (select count(*) from imgsearch.ingest_failure), "
        "(select count(*) from imgsearch.image i where exists (select from imgsearch.ingest_failure f where f.key = i.key))"
    ).fetchone()
    assert row is not None
    stored, failed, both = row
    assert both == 0
    assert stored == counts["embedded"] + counts["reused"]
    assert failed == counts["failed"] + counts["skipped"]
    assert min(stored, failed) > ROWS / 10, "rows of both kinds are generated"
    again = ingest(source, "palette", collection=collection).counts["palette"]
    assert (again["scanned"], again["unchanged"]) == (total, stored)
    assert again["failed"] + again["skipped"] == failed
