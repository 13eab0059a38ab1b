"""Thresholds measured on real photos keep their promise on photos and edits that they were not measured on."""

import fcntl
import io
import json
import os
import pty
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image, ImageOps

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import get_model
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.ingest import run
from pgimgsearch.sources.folder import folder_source
from tests.conftest import command_environment
from tests.support.edits import EDITS
from tests.support.images import photo, photo_image


def halves(photos: list[Path], folder: Path, seed: int) -> tuple[Path, Path, int]:
    """Known photos, and new ones of which every tenth has one edited copy; and how many copies there are."""
    random.Random(seed).shuffle(photos)
    known, new = folder / "known", folder / "new"
    known.mkdir(parents=True)
    new.mkdir()
    middle = len(photos) // 2
    for number, path in enumerate(photos[:middle]):
        shutil.copy(path, known / f"{number:05}{path.suffix}")
    for number, path in enumerate(photos[middle:]):
        shutil.copy(path, new / f"{number:05}{path.suffix}")
    copied = range(0, len(photos) - middle, 10)
    for transform, number in enumerate(copied):
        kind = list(EDITS)[transform % len(EDITS)]
        original = ImageOps.exif_transpose(Image.open(photos[middle + number])).convert("RGB")
        EDITS[kind](original).save(new / f"{number:05}-{kind}.png")
    return known, new, len(copied)


@pytest.mark.slow
def test_the_promise_holds_on_photos_and_edits_that_were_not_seen(
    data: Path, tmp_path: Path, url: str, cli: Callable[..., Any]
) -> None:
    known, new, copies = halves(sorted((data / "fashion").rglob("*.jpg")), tmp_path, seed=7)
    with connect(url) as connection:
        loaded = open_model(connection, "pdq")
    for folder in (known, new):
        run.ingest(url, folder_source(folder), [loaded], run.Options(workers=2, collection=folder.name))
    done = cli("--json", "models", "calibrate", "pdq", "--collection", "known", "--precision", "0.9", "--sample", "25")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    done = cli("--json", "duplicates", "--pairs", "--model", "pdq", "--collection", "new", "--kind", "near")
    assert f"{measured['near']['value']:.4g} is used" in done.stderr  # as there are too few new ones to measure on
    found = [row["path_a"][:5] == row["path_b"][:5] for row in json.loads(done.stdout)]
    assert sum(found) / len(found) >= 0.9
    assert sum(found) / copies >= 0.5
    assert measured["near"]["false_pairs"] <= measured["near"]["false_pairs_at_most"]


def in_other_colors(image: Image.Image) -> Image.Image:
    """The same brightness everywhere, which is all that a hash sees."""
    brightness, blue, red = image.convert("YCbCr").split()
    return Image.merge("YCbCr", (brightness, red, blue)).convert("RGB")


@pytest.fixture
def drawn(tmp_path: Path, ingest: Callable[..., Any]) -> Path:
    """Sixty images."""
    folder = tmp_path / "photos"
    for number in range(60):
        photo(folder / f"{number}.png", seed=number, size=(160, 120))
    ingest(folder, "pdq")
    return folder


def calibrate(cli: Callable[..., Any], *arguments: str) -> Any:
    return cli(
        "--json", "models", "calibrate", "pdq", "--sample", "20", "--copies", "1", "--precision", "0.8", *arguments
    )


def test_a_person_knows_better(
    drawn: Path, cli: Callable[..., Any], ingest: Callable[..., Any], connection: Connection, tmp_path: Path
) -> None:
    first = json.loads(calibrate(cli).stdout)
    in_other_colors(Image.open(drawn / "3.png")).save(drawn / "3 recolored.png")
    ingest(drawn, "pdq")
    mistaken = json.loads(calibrate(cli, "--html", str(tmp_path / "page.html")).stdout)
    assert mistaken["near"]["false_pairs"] > first["near"]["false_pairs"]
    page = (tmp_path / "page.html").read_text()
    ids = dict(connection.execute("select path, image_id from imgsearch.image").fetchall())
    command = f"pgimgsearch duplicates accept {ids['3.png']} {ids['3 recolored.png']}"
    assert command in page
    assert cli(*command.split()[1:]).returncode == 0
    told = json.loads(calibrate(cli).stdout)
    assert told["near"]["false_pairs"] < mistaken["near"]["false_pairs"]
    assert told["copies_left_out"] == mistaken["copies_left_out"] + 1
    stored = get_model(connection, "pdq")
    assert stored.near == pytest.approx(told["near"]["value"])
    assert stored.similar == (told["similar"] and pytest.approx(told["similar"]["value"]))
    said = cli("duplicates").stderr
    assert "measured on 61 images of photos on 20" in said
    assert "for a precision of 0.80" in said


def test_copies_in_grey_smaller_or_compressed_need_nobody(
    drawn: Path, cli: Callable[..., Any], ingest: Callable[..., Any]
) -> None:
    first = json.loads(calibrate(cli).stdout)
    image = Image.open(drawn / "3.png")
    image.convert("L").save(drawn / "3 grey.png")
    image.resize((80, 60)).save(drawn / "3 small.png")
    image.save(drawn / "3 compressed.jpg", quality=30)
    ingest(drawn, "pdq")
    told = json.loads(calibrate(cli).stdout)
    assert told["copies_left_out"] == first["copies_left_out"] + 6  # all pairs of the four
    assert told["near"]["value"] == pytest.approx(first["near"]["value"], abs=0.02)


def test_a_collection_has_thresholds_of_its_own(
    drawn: Path, cli: Callable[..., Any], ingest: Callable[..., Any], connection: Connection, tmp_path: Path
) -> None:
    assert "its own, not measured" in cli("duplicates", "--collection", "photos").stderr
    first = json.loads(calibrate(cli, "--collection", "photos").stdout)
    other = tmp_path / "scans"
    for number in range(60):  # each with one like it, which is no copy
        image = photo_image(1000 + number, (160, 120))
        for part in (0, 16):
            path = other / f"{number}-{part}.png"
            path.parent.mkdir(exist_ok=True)
            image.crop((part, 0, part + 144, 120)).save(path)
    ingest(other, "pdq")
    done = cli("duplicates", "--collection", "scans")
    assert done.returncode == 0, done.stderr
    assert f"was measured on 60 images of photos on {date.today()}: measuring it on scans" in done.stderr
    found = dict(
        connection.execute(
            "select l.name, c.near from imgsearch.calibration c join imgsearch.collection l using (collection_id)"
        ).fetchall()
    )
    assert found["photos"] == pytest.approx(first["near"]["value"]) == get_model(connection, "pdq").near
    assert found["scans"] > found["photos"]  # by which the command, SQL and searches go
    assert f"threshold {found['scans']:.4g}, measured on 120 images of scans" in done.stderr
    again = cli("duplicates", "--collection", "scans")
    assert "measuring" not in again.stderr
    for name, threshold in found.items():
        least = connection.execute(
            "select min(similarity), (select min(similarity) from imgsearch.duplicates(collection => %(name)s, model => 'pdq', "
            "threshold => %(near)s)) from imgsearch.duplicates(collection => %(name)s, model => 'pdq')",
            {"name": name, "near": threshold},
        ).fetchone()
        assert least is not None
        assert least[0] == least[1]
    everywhere = cli("duplicates")
    assert "measuring it on all collections" in everywhere.stderr
    alone = cli("duplicates", "--collection", "scans", "--threshold", "0.9", "--anew")
    assert "threshold 0.9, as you say" in alone.stderr


def test_where_it_cannot_be_measured_the_models_own_holds(
    drawn: Path, cli: Callable[..., Any], ingest: Callable[..., Any], tmp_path: Path
) -> None:
    known = json.loads(calibrate(cli).stdout)["near"]["value"]
    photo(tmp_path / "few" / "1.png", 7)
    ingest(tmp_path / "few", "pdq")
    done = cli("duplicates", "--collection", "few")
    assert done.returncode == 0
    assert "too few to measure a threshold" in done.stderr
    assert "measuring" not in cli("duplicates", "--of", "1", "--collection", "few").stderr
    assert f"threshold {known:.4g}, measured on 60 images of photos" in done.stderr


@pytest.fixture
def indistinct(tmp_path: Path, ingest: Callable[..., Any]) -> Path:
    """Images and their mirror images, which are no copies, and have the same colours."""
    folder = tmp_path / "pairs"
    for number in range(40):
        path = photo(folder / f"{number:03}-0.png", number, (160, 120))
        ImageOps.mirror(Image.open(path)).save(folder / f"{number:03}-1.png")
    ingest(folder, "palette")
    return folder


def test_a_refusal_names_the_pairs_to_judge_which_takes_a_key_each(
    indistinct: Path, cli: Callable[..., Any], connection: Connection, url: str
) -> None:
    done = cli("models", "calibrate", "palette", "--sample", "20", "--precision", "0.8", "--copies", "1")
    assert done.returncode == 5
    assert "at no threshold" in done.stderr
    hint = next(line for line in done.stderr.splitlines() if line.startswith("hint:"))
    named = re.search(r"\((\d+) (\d+), ", hint)
    assert named is not None
    paths = dict(connection.execute("select image_id, path from imgsearch.image").fetchall())
    assert paths[int(named[1])][:3] == paths[int(named[2])][:3]
    command = re.search(r"pgimgsearch (duplicates review .*?);", hint)
    assert command is not None
    asked = subprocess.run(
        [sys.executable, "-m", "pgimgsearch", "--json", *command[1].split()],
        env=command_environment(indistinct.parent, url, {}), capture_output=True, text=True, check=True, input="arsxuuaq",
    )  # fmt: skip
    counts = json.loads(asked.stdout)
    verdicts = connection.execute("select verdict, count(*) from imgsearch.duplicate_verdict group by 1").fetchall()
    # accepted, rejected, skipped, back twice, accepted
    assert dict(verdicts) == {"accepted": 2}
    assert counts["accepted"] == 2
    assert counts["rejected"] == 0
    assert counts["left"] > 0


def test_many_pairs_are_accepted_at_once_after_a_count(
    indistinct: Path, cli: Callable[..., Any], connection: Connection
) -> None:
    above = ["--kind", "near", "--above", "0.999", "--model", "palette"]
    rows = connection.execute(
        "select least(image_a, image_b), greatest(image_a, image_b) from imgsearch.duplicates(0.999, 'palette')"
    ).fetchall()
    assert len(rows) > 10
    connection.execute("select imgsearch.judge_duplicates(%s, %s, 'rejected')", rows[0])
    with mock.patch("sys.stdin", io.StringIO("n\n")):
        refused = cli("duplicates", "accept", *above)
    assert refused.returncode == 1
    assert f"Accept {len(rows) - 1} pairs of" in refused.stderr
    assert connection.execute("select count(*) from imgsearch.duplicate_verdict").fetchone() == (1,)
    done = cli("duplicates", "accept", *above, "--yes")
    assert f"{len(rows) - 1} pairs of" in done.stderr
    verdicts = connection.execute("select verdict, count(*) from imgsearch.duplicate_verdict group by 1").fetchall()
    assert dict(verdicts) == {"accepted": len(rows) - 1, "rejected": 1}
    assert "nothing to accept" in cli("duplicates", "accept", *above).stderr
    assert cli("duplicates", "accept", "1", "2", *above).returncode == 2


def test_what_cannot_be_promised_is_refused_and_changes_nothing(
    drawn: Path, cli: Callable[..., Any], connection: Connection, tmp_path: Path
) -> None:
    before = get_model(connection, "pdq").near
    done = cli(
        "models",
        "calibrate",
        "pdq",
        "--sample",
        "20",
        "--precision",
        "0.99",
        "--plot",
        str(tmp_path / "plot.png"),
        "--html",
        str(tmp_path / "page.html"),
    )
    assert done.returncode == 5
    assert "60 images are too few to promise a precision of 0.99" in done.stderr
    assert "No threshold: 60 images" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert calibrate(cli, "--dry-run").returncode == 0
    assert get_model(connection, "pdq").near == before
    for path in drawn.iterdir():
        path.unlink()
    done = calibrate(cli)
    assert done.returncode == 6
    assert "none of the images can be read" in done.stderr
    connection.execute("delete from imgsearch.image where image_id > 10")
    assert "too few to measure" in calibrate(cli).stderr


def test_a_terminal_of_many_colours_shows_both_images(
    indistinct: Path, connection: Connection, url: str, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))
    environment = command_environment(tmp_path, url, {"TERM": "xterm-256color", "COLORTERM": "truecolor"})
    environment.pop("COLUMNS")
    asked = subprocess.Popen(
        [sys.executable, "-m", "pgimgsearch", "duplicates", "review", "--model", "palette", "--above", "0.999"],
        env=environment, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown, keys = b"", [b"a", b"q"]
    with suppress(OSError):  # as Linux ends a terminal that nobody has open any more
        while True:
            if select.select([ours], [], [], 0.05)[0]:
                part = os.read(ours, 65536)
                if not part:
                    break
                shown += part
            waits = not termios.tcgetattr(ours)[3] & termios.ICANON  # for a key, and discards those of before
            if waits and keys and shown.count(b" KB") >= 2 * (3 - len(keys)):  # both images of a pair were described
                os.write(ours, keys.pop(0))
    os.close(ours)
    assert asked.stdout is not None
    with asked.stdout:
        counts = asked.stdout.read().decode()
    assert asked.wait() == 0
    assert re.search(r"accepted +1\n", counts)
    blocks = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2", shown.decode())
    assert len(blocks) > 1000
    assert len(set(blocks)) > 200
    assert connection.execute("select verdict from imgsearch.duplicate_verdict").fetchall() == [("accepted",)]
