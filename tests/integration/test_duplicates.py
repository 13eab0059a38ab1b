"""Duplicates: identical is said of pixels alone, near of a threshold, and groups do not chain."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image

from pgimgsearch.database.connection import Connection
from tests.support.builders import add_model
from tests.support.images import photo


@pytest.fixture
def copies(photos: Path, ingest: Callable[..., Any]) -> Path:
    """00: the same bytes, the same pixels in another format, and smaller; 01: recoded."""
    first = Image.open(photos / "a" / "00.png")
    (photos / "same-bytes.png").write_bytes((photos / "a" / "00.png").read_bytes())
    first.save(photos / "same-pixels.bmp")
    first.resize((64, 48)).save(photos / "smaller.png")
    Image.open(photos / "a" / "01.png").save(photos / "recoded.jpg", quality=95)
    ingest(photos, "pdq")
    return photos


def test_pairs_and_kinds(copies: Path, connection: Connection) -> None:
    rows = connection.execute(
        "select a.path, b.path, d.kind, d.similarity from imgsearch.duplicates() d join imgsearch.image a on a.image_id = image_a "
        "join imgsearch.image b on b.image_id = image_b"
    ).fetchall()
    found = {(frozenset(row[:2]), row[2]) for row in rows}
    same = ["a/00.png", "same-bytes.png", "same-pixels.bmp"]
    identical = [pair for pair, kind in found if kind == "identical"]
    assert len(identical) == 2
    assert set().union(*identical) == set(same)
    near = [pair for pair, kind in found if kind == "near"]
    assert len(near) == 2
    assert frozenset(["a/01.png", "recoded.jpg"]) in near
    assert all(row[3] >= 1 - 31 / 256 for row in rows)


def test_one_images_copies(copies: Path, connection: Connection) -> None:
    rows = connection.execute(
        "select path, kind from imgsearch.duplicates_of((select image_id from imgsearch.image where path = 'smaller.png'))"
    ).fetchall()
    assert dict(rows) == {"a/00.png": "near", "same-bytes.png": "near", "same-pixels.bmp": "near"}
    rows = connection.execute(
        "select path, kind from imgsearch.duplicates_of((select image_id from imgsearch.image where path = 'a/00.png'))"
    ).fetchall()
    assert dict(rows) == {
        "same-bytes.png": "identical",
        "same-pixels.bmp": "identical",
        "smaller.png": "near",
    }


def test_groups_keep_the_best_and_say_why_over_the_next(copies: Path, connection: Connection) -> None:
    rows = connection.execute(
        "select path, keeper, kind, reason from imgsearch.duplicate_groups() order by group_id, keeper desc"
    ).fetchall()
    assert len(rows) == 6
    keepers = {path: reason for path, keeper, _, reason in rows if keeper}
    assert keepers == {"a/00.png": "oldest", "a/01.png": "better format"}
    assert {path for path, keeper, kind, _ in rows if kind == "identical"} == {"same-bytes.png", "same-pixels.bmp"}


def test_restrictions_and_the_shell(copies: Path, connection: Connection, cli: Callable[..., Any]) -> None:
    some = [
        row[0]
        for row in connection.execute(
            "select image_id from imgsearch.image where path in ('a/01.png', 'recoded.jpg', 'a/02.png')"
        ).fetchall()
    ]
    assert len(connection.execute("select * from imgsearch.duplicates(among => %s)", [some]).fetchall()) == 1
    assert connection.execute("select count(*) from imgsearch.duplicates(threshold => 0.3)").fetchone() > (4,)
    assert {
        row[0] for row in connection.execute("select kind from imgsearch.duplicates(threshold => 0.3)").fetchall()
    } == {"identical", "near", "similar"}
    done = cli("--json", "duplicates", "--pairs")
    assert done.stdout.count('"kind": "near"') == 2
    assert "model pdq, threshold 0.8789" in done.stderr
    assert "same-pixels.bmp" in cli("duplicates").stdout


def test_a_picture_of_many_copies_costs_one_pair_each(
    tmp_path: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    folder = tmp_path / "nophoto"
    original = photo(folder / "0.png", seed=3)
    for number in range(1, 60):
        (folder / f"{number}.png").write_bytes(original.read_bytes())
    ingest(folder, "pdq")
    assert connection.execute("select count(*), count(distinct image_a) from imgsearch.duplicates()").fetchone() == (
        59,
        1,
    )
    assert connection.execute(
        "select count(*), count(distinct group_id) from imgsearch.duplicate_groups()"
    ).fetchone() == (60, 1)


def test_a_twin_in_pixels_stands_in_for_a_first_image_without_vector(copies: Path, connection: Connection) -> None:
    connection.execute(
        "delete from imgsearch.embedding_pdq_256 where content_id = (select content_id from imgsearch.image where path = 'a/00.png')"
    )
    rows = connection.execute("select kind, count(*) from imgsearch.duplicates() group by kind").fetchall()
    assert dict(rows) == {"identical": 2, "near": 2}


@pytest.mark.parametrize(("threshold", "code"), [("null", "PI007"), ("1.5", "PI008"), ("'nan'", "PI008")])
def test_a_threshold_that_cannot_be(connection: Connection, threshold: str, code: str) -> None:
    add_model(connection, "raw", 4)
    connection.execute("update imgsearch.model set near = null")
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(f"select * from imgsearch.duplicates(threshold => {threshold})")
    assert raised.value.sqlstate == code
    assert "threshold =>" in str(raised.value.diag.message_hint)
