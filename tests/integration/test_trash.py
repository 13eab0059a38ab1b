"""Copies are put away only as planned, and come back; whatever happened meanwhile, no image is lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image

from pgimgsearch.database.connection import Connection
from pgimgsearch.duplicates import trash as away
from pgimgsearch.duplicates.groups import GroupRequest, groups
from pgimgsearch.duplicates.hold_back import hold_back
from pgimgsearch.duplicates.plan import plan, read_plan
from pgimgsearch.duplicates.trash import apply
from pgimgsearch.errors import DatabaseError, SourceError, UsageError
from tests.support.images import photo

Files = dict[str, bytes]

BOTH = ["--kind", "identical", "--kind", "near"]


@pytest.fixture
def shop(tmp_path: Path, ingest: Callable[..., Any], connection: Connection) -> Path:
    """Three originals; of the first a byte copy and a small one, of the second a small one."""
    folder = tmp_path / "shop"
    for number in range(3):
        path = photo(folder / f"{number}.png", seed=number + 3, size=(1024, 768))
        grain = np.random.default_rng(number).normal(0, 6, (768, 1024, 3))  # which a smaller copy has not
        Image.fromarray(np.clip(np.asarray(Image.open(path)) + grain, 0, 255).astype(np.uint8)).save(path)
    (folder / "copy of 0.png").write_bytes((folder / "0.png").read_bytes())
    for number in range(2):
        Image.open(folder / f"{number}.png").resize((800, 600)).save(folder / f"small {number}.png")
    ingest(folder, "pdq")
    # a caption with a character at which Python, but not JSONL, ends a line
    connection.execute(
        "update imgsearch.image set caption = path || chr(8232) || 'x', metadata = jsonb_build_object('path', path)"
    )
    return folder


def files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images(connection: Connection) -> list[Any]:
    return connection.execute(
        "select i.image_id, i.added_at, i.path, i.caption, i.metadata, i.modified_at, c.sha256, c.pixel_hash, c.width "
        "from imgsearch.image i join imgsearch.content c using (content_id) order by i.path"
    ).fetchall()


def test_planned_moved_and_brought_back(
    shop: Path, tmp_path: Path, cli: Callable[..., Any], connection: Connection, ingest: Callable[..., Any]
) -> None:
    plan, trash = tmp_path / "plan.jsonl", tmp_path / "trash"
    before, rows = files(shop), images(connection)
    shown = cli("duplicates", "--plan", str(plan), *BOTH)
    assert "3 files" in shown.stderr
    assert "nothing has" in shown.stderr
    assert files(shop) == before
    done = cli("--json", "duplicates", "--apply", str(plan), "--trash", str(trash))
    assert done.returncode == 0, done.stderr
    assert [row["outcome"] for row in json.loads(done.stdout)] == ["moved"] * 3
    assert set(files(shop)) == {"0.png", "1.png", "2.png"}
    assert {**files(shop), **files(trash)}.items() >= before.items()
    assert [row[2] for row in images(connection)] == ["0.png", "1.png", "2.png"]
    assert connection.execute("select count(*) from imgsearch.content").fetchone() == (3,)
    done = cli("duplicates", "undo", str(trash))
    assert done.returncode == 0, done.stderr
    assert files(shop) == before
    assert images(connection) == rows
    assert ingest(shop, "pdq").counts["pdq"]["embedded"] == 2  # the copy's bytes are known
    assert json.loads(cli("--json", "duplicates", "undo", str(trash)).stdout) == []


def test_what_changed_since_the_plan_stays(shop: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    plan, trash = tmp_path / "plan.jsonl", tmp_path / "trash"
    cli("duplicates", "--plan", str(plan), *BOTH)
    (shop / "copy of 0.png").unlink()
    (shop / "small 0.png").write_bytes(b"something else")
    (shop / "1.png").unlink()  # the keeper of small 1
    before = files(shop)
    done = cli("--json", "duplicates", "--apply", str(plan), "--trash", str(trash))
    assert done.returncode == 1
    said = {Path(row["location"]).name: row["outcome"] for row in json.loads(done.stdout)}
    assert said["copy of 0.png"].startswith("the file is gone")
    assert said["small 0.png"] == "the file has changed"
    assert "its keeper is gone" in said["small 1.png"]
    assert files(shop) == before


def test_a_file_is_never_moved_for_itself(shop: Path, tmp_path: Path, connection: Connection) -> None:
    """Two rows that lead to one file, as by a link: the file stays."""
    os.link(shop / "0.png", shop / "same.png")
    connection.execute("update imgsearch.image set path = 'same.png' where path = 'copy of 0.png'")
    moves = [move for move in plan(_groups(connection)) if move.location.endswith("same.png")]
    assert len(moves) == 1
    outcomes = list(apply(connection, moves, tmp_path / "trash"))
    assert "its keeper's own file" in outcomes[0].outcome
    assert (shop / "same.png").exists()


def test_nothing_is_written_over(shop: Path, tmp_path: Path, connection: Connection) -> None:
    moves, trash = plan(_groups(connection)), tmp_path / "trash"
    taken = trash / str(shop / "small 1.png").lstrip("/")
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"mine")
    before = files(shop)
    assert {outcome.outcome for outcome in apply(connection, moves, trash)} == {"moved"}
    assert taken.read_bytes() == b"mine"
    (shop / "small 0.png").write_bytes(b"a new one")
    back = {Path(outcome.location).name: outcome.outcome for outcome in away.undo(connection, trash)}
    assert back["small 1.png"] == "restored"
    assert back["small 0.png"] == "there is a file of that name again"
    assert files(shop) == before | {"small 0.png": b"a new one"}
    assert before["small 0.png"] in files(trash).values()


def test_undo_finds_a_trash_that_was_moved_and_goes_on_over_a_torn_line(
    shop: Path, tmp_path: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rows = files(shop), images(connection)
    monkeypatch.chdir(tmp_path)
    moves = plan(_groups(connection))
    list(apply(connection, moves[:1], Path("trash")))
    with (tmp_path / "trash" / "undo.jsonl").open("a") as undo:
        undo.write('{"from": "/torn')
    list(apply(connection, moves[1:], Path("trash")))
    (tmp_path / "trash").rename(tmp_path / "elsewhere")
    lost = next((tmp_path / "elsewhere").rglob("small 1.png"))
    lost.unlink()
    outcomes = [outcome.outcome for outcome in away.undo(connection, tmp_path / "elsewhere")]
    assert sorted(outcomes) == [
        "a line of undo.jsonl that cannot be read",
        "it is not in the trash any more",
        "restored",
        "restored",
    ]
    assert files(shop) == {name: data for name, data in before.items() if name != "small 1.png"}
    assert images(connection) == [row for row in rows if row[2] != "small 1.png"]


@pytest.mark.parametrize("moved", [False, True])
def test_what_a_kill_left_half_done_is_finished_by_the_same_command(
    shop: Path, tmp_path: Path, cli: Callable[..., Any], connection: Connection, monkeypatch: pytest.MonkeyPatch,
    moved: bool,
) -> None:  # fmt: skip
    """Before a file is moved, and before its row goes; and what is done is done."""
    path, before, move = tmp_path / "plan.jsonl", files(shop), away._move
    assert cli("duplicates", "--plan", str(path), *BOTH).returncode == 0

    def killed(source: Path, target: Path) -> None:
        if moved:
            move(source, target)
        raise KeyboardInterrupt

    for _ in range(3):  # each time it goes on and is killed at the next file
        monkeypatch.setattr(away, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            list(apply(connection, read_plan(path), tmp_path / "trash"))
    for _ in range(2):
        monkeypatch.setattr(away, "_move", move)
        done = cli("duplicates", "--apply", str(path), "--trash", str(tmp_path / "trash"))
        assert done.returncode == 0, done.stdout
        assert "3 of 3 moved" in done.stderr
    assert set(files(shop)) == {"0.png", "1.png", "2.png"}
    assert [row[2] for row in images(connection)] == ["0.png", "1.png", "2.png"]
    cli("duplicates", "undo", str(tmp_path / "trash"))
    assert files(shop) == before
    assert len(images(connection)) == 6


def test_a_file_that_came_back_without_its_row_gets_it(shop: Path, tmp_path: Path, connection: Connection) -> None:
    """As after a kill between the move and the row."""
    rows = images(connection)
    for outcome in list(apply(connection, plan(_groups(connection)), tmp_path / "trash")):
        Path(outcome.to).rename(outcome.location)
    assert len(images(connection)) == 3
    assert list(away.undo(connection, tmp_path / "trash")) == []
    assert images(connection) == rows


def test_a_trash_that_would_be_ingested_is_refused(shop: Path, connection: Connection) -> None:
    moves = plan(_groups(connection))
    with pytest.raises(UsageError, match="inside of collection shop"):
        next(apply(connection, moves, shop / "trash"))
    assert {outcome.outcome for outcome in apply(connection, moves, shop / ".trash")} == {"moved"}


def test_what_a_reference_collection_shows_stays_also_where_another_shows_it(
    shop: Path, connection: Connection
) -> None:
    """The small copy is in two collections, of which one is kept whole."""
    connection.execute("insert into imgsearch.collection (name, root) values ('kept', %s)", [str(shop.parent)])
    connection.execute(
        "insert into imgsearch.image (content_id, collection_id, key, path) select content_id, 2, path, 'shop/' || path "
        "from imgsearch.image where path in ('small 0.png', '0.png')"
    )
    moves = plan(_groups(connection, reference=["kept"]))
    assert {Path(move.location).name for move in moves} == {"copy of 0.png", "small 1.png"}


def test_one_at_a_time_and_only_plans(shop: Path, tmp_path: Path, connection: Connection, url: str) -> None:
    moves = plan(_groups(connection))
    with psycopg.connect(url, autocommit=True) as other:
        running = apply(other, moves, tmp_path / "trash")
        next(running)
        with pytest.raises(DatabaseError, match="another command is moving"):
            next(apply(connection, moves, tmp_path / "trash"))
        assert len(list(running)) == 2
    (tmp_path / "plan.jsonl").write_text('{"image_id": 1}\n')
    with pytest.raises(SourceError, match="line 1 is no line of a plan"):
        read_plan(tmp_path / "plan.jsonl")
    with pytest.raises(SourceError, match="there is no"):
        next(away.undo(connection, tmp_path))


def _groups(connection: Connection, **question: Any) -> Any:
    return groups(connection, GroupRequest(**question))


def test_without_a_kind_a_plan_takes_identical_images_alone(
    shop: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """What looks alike to a model may differ in what matters."""
    done = cli("--json", "duplicates", "--plan", str(tmp_path / "plan.jsonl"))
    assert {move.kind for move in read_plan(tmp_path / "plan.jsonl")} == {"identical"}
    assert "identical images alone" in done.stderr
    cli("duplicates", "--plan", str(tmp_path / "both.jsonl"), *BOTH)
    assert {move.kind for move in read_plan(tmp_path / "both.jsonl")} == {"identical", "near"}


@pytest.mark.parametrize(
    ("beside", "held"),
    [("copy of 0.CR2", True), ("COPY OF 0.mov", True), ("copy of 0.png.json", True),
     ("copy of 0.png.supplemental-metadata.json", True),
     ("copy of 0.xmp", True), ("copy of 0.txt", False), ("other.CR2", False), ("copy of 02.mov", False)],
)  # fmt: skip
def test_files_that_belong_to_a_copy_hold_it_back(
    shop: Path, tmp_path: Path, cli: Callable[..., Any], beside: str, held: bool
) -> None:
    copy = shop / "copy of 0.png"
    (shop / beside).write_bytes(b"x")
    done = cli("--json", "duplicates", "--plan", str(tmp_path / "plan.jsonl"))
    assert [move.location for move in read_plan(tmp_path / "plan.jsonl")] == ([] if held else [str(copy)])
    assert ("1 of the copies has files that belong to them" in done.stderr) == held


def test_what_a_camera_wrote_holds_a_copy_back(connection: Connection, shop: Path, ingest: Callable[..., Any]) -> None:
    """Where somebody prefers the other one by its path."""
    (shop / "copy of 0.png").unlink()
    Image.open(shop / "0.png").save(shop / "same.png", compress_level=1)
    connection.execute("delete from imgsearch.image where path = 'copy of 0.png'")
    ingest(shop, "pdq")
    moves = plan(_groups(connection, kinds=["identical"]))
    assert len(moves) == 1
    connection.execute(
        "update imgsearch.content set about = '{\"taken_at\": \"2024-05-05T10:00:00.000000\"}' where content_id = "
        "(select content_id from imgsearch.image where image_id = %s)", [moves[0].image_id],
    )  # fmt: skip
    left, told = hold_back(connection, moves)
    assert left == []
    assert "--allow-metadata-loss" in told[0]
    assert hold_back(connection, moves, allow_metadata_loss=True) == (moves, [])
    connection.execute('update imgsearch.content set about = \'{"taken_at": "2020-01-01T10:00:00.000000"}\'')
    assert hold_back(connection, moves) == (moves, [])
