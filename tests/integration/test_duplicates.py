"""Duplicates: identical is said of pixels alone, near of a threshold, and groups do not chain."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image
from psycopg import sql

from benchmarks.harness import add_model
from pgimgsearch.database.connection import Connection
from tests.pictures import photo


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


def test_groups_keep_the_most_pixels(copies: Path, connection: Connection) -> None:
    rows = connection.execute(
        "select path, keeper, kind, reason from imgsearch.duplicate_groups() order by group_id, keeper desc"
    ).fetchall()
    assert len(rows) == 6
    keepers = {path: reason for path, keeper, _, reason in rows if keeper}
    assert keepers == {"same-pixels.bmp": "most pixels", "a/01.png": "most bytes"}
    assert {path for path, keeper, kind, _ in rows if kind == "identical"} == {"a/00.png", "same-bytes.png"}


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


def test_groups_do_not_chain_and_lose_no_pair_of_a_keeper(connection: Connection) -> None:
    """Points on an arc, each near its neighbours only: every member is near its keeper, nobody is in two groups."""
    count, threshold = 40, 0.985
    angles = np.linspace(0, 3, count)
    model = add_model(connection, "arc", 2)
    connection.execute("insert into imgsearch.collection (name) values ('arc')")
    rng = np.random.default_rng(2)
    for number, (angle, width) in enumerate(zip(angles, rng.permutation(count), strict=True), 1):
        digest = bytes([number]) * 32
        connection.execute(
            "insert into imgsearch.content (sha256, pixel_sha256, bytes, width, height, format) values (%s, %s, 1, %s, 10, 'PNG')",
            [digest, digest, int(width) + 1],
        )
        connection.execute(
            "insert into imgsearch.image (content_id, collection_id, path) values (%s, 1, %s)",
            [number, str(number)],
        )
        connection.execute(
            sql.SQL("insert into {} values (%s, %s::vector)").format(model.table),
            [number, f"[{np.cos(angle)},{np.sin(angle)}]"],
        )
    pairs = {
        frozenset(row)
        for row in connection.execute(
            "select image_a, image_b from imgsearch.duplicates(threshold => %s)", [threshold]
        ).fetchall()
    }
    true = {
        frozenset((i + 1, j + 1))
        for i, j in itertools.combinations(range(count), 2)
        if np.cos(angles[i] - angles[j]) >= threshold
    }
    assert len(pairs ^ true) <= 4  # halfvec rounds at the threshold
    rows = connection.execute(
        "select group_id, image_id, keeper, similarity, width from imgsearch.duplicate_groups(threshold => %s)",
        [threshold],
    ).fetchall()
    members = [row[1] for row in rows]
    assert len(members) == len(set(members))
    for group, image, keeper, similarity, width in rows:
        assert keeper == (group == image)
        assert keeper or frozenset((group, image)) in pairs
        assert similarity >= threshold - 2e-3
        assert width <= next(row[4] for row in rows if row[1] == group)
    in_pairs = set().union(*pairs)
    alone = in_pairs - set(members)
    assert all(not any(frozenset((one, other)) in pairs for other in alone) for one in alone)


def test_a_twin_in_pixels_stands_in_for_a_first_image_without_vector(copies: Path, connection: Connection) -> None:
    connection.execute(
        "delete from imgsearch.embedding_pdq_256 where content_id = (select content_id from imgsearch.image where path = 'a/00.png')"
    )
    rows = connection.execute("select kind, count(*) from imgsearch.duplicates() group by kind").fetchall()
    assert dict(rows) == {"identical": 2, "near": 2}


def test_no_threshold_is_an_error(connection: Connection) -> None:
    add_model(connection, "raw", 4)
    connection.execute("update imgsearch.model set near = null")
    with pytest.raises(psycopg.Error) as raised:
        connection.execute("select * from imgsearch.duplicates()")
    assert raised.value.sqlstate == "PI007"
    assert "threshold =>" in str(raised.value.diag.message_hint)
