"""Mirrored and rotated copies: found when asked for, said how, and not looked for twice."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.Image import Transpose

from pgimgsearch.database.connection import Connection
from pgimgsearch.duplicates.transforms import BOTH, MIRRORED, ROTATED, transforms_of
from tests.support.images import photo


def test_the_turns_are_all_of_a_square_and_each_has_its_inverse() -> None:
    transforms = transforms_of(True, True)
    assert set(transforms.values()) == set(Transpose)
    corner = Image.new("L", (2, 2))
    corner.putdata([0, 1, 2, 3])
    for wanted in (MIRRORED, ROTATED, {**MIRRORED, **ROTATED, **BOTH}):
        made = {how: corner.transpose(how).tobytes() for how in wanted.values()}
        for first, second in itertools.product(wanted.values(), repeat=2):
            both = corner.transpose(first).transpose(second).tobytes()
            assert both == corner.tobytes() or both in made.values()


@pytest.fixture
def transform(tmp_path: Path, ingest: Callable[..., Any]) -> Path:
    """Four images, and of the first a mirrored, a rotated and a mirrored and rotated copy, smaller."""
    folder = tmp_path / "photos"
    for number in range(4):
        photo(folder / f"{number}.png", seed=number + 3, size=(320, 240))
    original = Image.open(folder / "0.png").resize((240, 180))
    original.transpose(Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    original.transpose(Transpose.ROTATE_90).save(folder / "rotated.png")
    original.transpose(Transpose.TRANSVERSE).save(folder / "both.png")
    ingest(folder, "pdq")
    return folder


def test_turned_copies_are_found_where_wanted(transform: Path, cli: Callable[..., Any], connection: Connection) -> None:
    def pairs(*arguments: str) -> dict[frozenset[str], str | None]:
        done = cli("--json", "duplicates", "--pairs", *arguments)
        assert done.returncode == 0, done.stderr
        pairs.said = done.stderr  # type: ignore[attr-defined]
        return {frozenset([row["path_a"], row["path_b"]]): row["transform"] for row in json.loads(done.stdout)}

    assert pairs() == {}
    assert pairs("--transformed", "mirror") == {
        frozenset(["0.png", "mirrored.png"]): "mirrored",
        frozenset(["rotated.png", "both.png"]): "mirrored",
    }
    (transform / "3.png").unlink()
    found = pairs("--transformed", "mirror,rotate")
    assert set(found) == {
        frozenset(pair) for pair in itertools.combinations(["0.png", "mirrored.png", "rotated.png", "both.png"], 2)
    }
    assert found[frozenset(["0.png", "mirrored.png"])] == "mirrored"
    assert str(found[frozenset(["0.png", "rotated.png"])]).startswith("rotated")
    assert str(found[frozenset(["0.png", "both.png"])]).startswith("mirrored, rotated")
    assert "6 images compared under transforms" in pairs.said  # type: ignore[attr-defined]
    assert "1 files could not be read" in pairs.said  # type: ignore[attr-defined]
    assert pairs() == {}  # remembered, and shown where wanted
    assert pairs("--transformed", "mirror,rotate") == found
    assert "0 images compared under transforms" in pairs.said  # type: ignore[attr-defined]  # (the file that is gone is tried again)
    query = "select path from imgsearch.duplicate_groups(transformed => true) where keeper"
    assert connection.execute(query).fetchall() == [("0.png",)]
    # a low threshold, at which the same two met before, takes nothing away
    cli("duplicates", "--anew", "--threshold", "0.45", "--pairs")
    assert found.items() <= pairs("--transformed", "mirror,rotate").items()


def test_unknown_turns(transform: Path, cli: Callable[..., Any]) -> None:
    done = cli("duplicates", "--transformed", "upside-down")
    assert done.returncode == 2
    assert "mirror, rotate" in done.stderr
