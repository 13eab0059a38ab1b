"""A family's photos: no plan moves an original for a copy of it, nor a page of a document, and undo brings all back."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.ingest import run
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.sources.folder import folder_source
from tests.support.family import Family, family

NETWORK = "timm:mobilenetv2_100"
PHOTOS = 10
COPIES_OF_BYTES = {"backup"}


@pytest.fixture
def tree(data: Path, tmp_path: Path, url: str) -> Family:
    """The tree, ingested with a hash and a network."""
    files = sorted((data / "clothing").rglob("*.jpg")) + sorted((data / "flickr").rglob("*.jpg"))
    chosen = random.Random(11).sample(files, PHOTOS)
    made = family(tmp_path / "family", [Image.open(path).convert("RGB") for path in chosen])
    with connect(url) as connection:
        weights = data / "weights" / "mobilenetv2_100_backbone_timm.safetensors"
        models = [open_model(connection, "pdq"), open_model(connection, NETWORK, Checkpoint(str(weights)))]
    run.ingest(url, folder_source(made.folder), models, run.Options(workers=2))
    return made


def bytes_of(folder: Path) -> dict[str, str]:
    """Every file and its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_keepers(connection: Connection) -> None:
    """Among an original and its conversions, which have all of its metadata, the camera's own file is kept."""
    groups: dict[int, list[tuple[str, bool, str]]] = {}
    for group, path, keeper, reason in connection.execute(
        "select group_id, path, keeper, reason from imgsearch.duplicate_groups(model => 'pdq', threshold => 0.95)"
    ):
        groups.setdefault(group, []).append((path, keeper, reason))
    judged = [members for members in groups.values() if any(path.startswith("camera/") for path, _, _ in members)]
    assert len(judged) > PHOTOS // 2
    for members in judged:
        (kept,) = [path for path, keeper, _ in members if keeper]
        assert kept.split("/")[0] in {"camera", "companions", "backup"}, members


@pytest.mark.slow
def test_no_plan_moves_an_original_or_a_page(
    tree: Family, cli: Callable[..., Any], connection: Connection, tmp_path: Path
) -> None:
    check_keepers(connection)
    before = bytes_of(tree.folder)
    rows = "select image_id, key, path, metadata, content_id is not null from imgsearch.image order by image_id"
    images = connection.execute(rows).fetchall()
    moved = set()
    for step, calibrated in enumerate((False, True)):
        if calibrated:
            for model in ("pdq", NETWORK):
                done = cli(
                    "models", "calibrate", model, "--sample", "20", "--precision", "0.5", "--similar-precision", "0.5"
                )
                assert done.returncode in {0, 5}, done.stderr  # 5: refused, so the default holds
        for model in ("pdq", NETWORK):
            for kinds in ([], ["--kind", "identical", "--kind", "near"]):
                plan = tmp_path / f"{step}-{model.replace(':', '-')}-{len(kinds)}.jsonl"
                done = cli("duplicates", "--model", model, *kinds, "--plan", str(plan))
                assert done.returncode == 0, done.stderr
                moves = [json.loads(line) for line in plan.read_text().splitlines()]
                paths = {str(Path(move["location"]).relative_to(tree.folder)) for move in moves}
                assert not paths & tree.originals
                assert not paths & tree.pages
                assert {path for path in paths if Path(path).parts[0] in COPIES_OF_BYTES}, "copies of bytes go"
                moved |= paths
                if not kinds:
                    assert all(move["kind"] == "identical" for move in moves)
                trash = tmp_path / f"trash-{plan.stem}"
                applied = cli("duplicates", "--apply", str(plan), "--trash", str(trash))
                assert applied.returncode == 0, applied.stderr + applied.stdout
                assert len(bytes_of(tree.folder)) == len(before) - len(moves)
                undone = cli("duplicates", "undo", str(trash))
                assert undone.returncode == 0, undone.stderr
                assert bytes_of(tree.folder) == before
                assert connection.execute(rows).fetchall() == images
    kinds_moved = {Path(path).parts[0] for path in moved}
    assert {"backup", "heic", "avif"} <= kinds_moved
    assert not kinds_moved & {"filters", "grey", "prints", "screenshots", "crops", "enlarged"}
    assert len(moved) >= PHOTOS
