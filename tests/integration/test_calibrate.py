"""Thresholds measured on real photos keep their promise on photos and edits that they were not measured on."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import get_model
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.ingest import run
from pgimgsearch.sources.folder import folder_source
from tests.support.edits import EDITS
from tests.support.images import photo

pytestmark = pytest.mark.slow


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
    assert "for a precision of 0.90" in done.stderr
    found = [row["path_a"][:5] == row["path_b"][:5] for row in json.loads(done.stdout)]
    assert sum(found) / len(found) >= 0.9
    assert sum(found) / copies >= 0.5
    assert measured["near"]["false_pairs"] <= measured["near"]["false_pairs_at_most"]


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
    Image.open(drawn / "3.png").convert("L").save(drawn / "3 grey.png")
    ingest(drawn, "pdq")
    mistaken = json.loads(calibrate(cli, "--html", str(tmp_path / "page.html")).stdout)
    assert mistaken["near"]["false_pairs"] > first["near"]["false_pairs"]
    page = (tmp_path / "page.html").read_text()
    ids = dict(connection.execute("select path, image_id from imgsearch.image").fetchall())
    command = f"pgimgsearch duplicates accept {ids['3.png']} {ids['3 grey.png']}"
    assert command in page
    assert cli(*command.split()[1:]).returncode == 0
    told = json.loads(calibrate(cli).stdout)
    assert told["near"]["false_pairs"] < mistaken["near"]["false_pairs"]
    assert told["copies_left_out"] == mistaken["copies_left_out"] + 1
    stored = get_model(connection, "pdq")
    assert (stored.near, stored.similar) == (
        pytest.approx(told["near"]["value"]),
        pytest.approx(min(told["near"]["value"], told["similar"]["value"])),
    )
    assert "measured on 61 images for a precision of 0.80" in cli("duplicates").stderr


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
