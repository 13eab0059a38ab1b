"""Copies found on real photos: recall by edit and precision at measured thresholds, beside imagededup's defaults.

Reads the photos of PGIMGSEARCH_TEST_DATA. The thresholds are measured on other photos than those that are searched, and
the edits have other strengths than those they are measured with.
"""

import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageOps

from benchmarks.harness import fresh_database, peer_python, report, run_peer
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.duplicates import calibrate
from pgimgsearch.duplicates.find import find
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.ingest import run
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.reporter import SILENT
from pgimgsearch.sources.folder import folder_source
from tests.support.edits import EDITS

DATA = Path(os.environ.get("PGIMGSEARCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
KNOWN, SEARCHED, EDITED = 1200, 600, 60  # photos to measure on, photos to search, and those of them that are edited
Pairs = set[tuple[str, str]]


def make(folder: Path) -> None:
    """Photos to measure on in ``known``; in ``searched`` others, and edited copies named NUMBER-EDIT.png."""
    photos = sorted((DATA / "fashion").rglob("*.jpg")) + sorted((DATA / "clothing").rglob("*.jpg"))
    random.Random(5).shuffle(photos)
    for name, part in (("known", photos[:KNOWN]), ("searched", photos[KNOWN : KNOWN + SEARCHED])):
        (folder / name).mkdir()
        for number, path in enumerate(part):
            shutil.copy(path, folder / name / f"{number:05}{path.suffix}")
    for number, path in enumerate(photos[KNOWN : KNOWN + EDITED]):
        original = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        for edit, change in EDITS.items():
            change(original).save(folder / "searched" / f"{number:05}-{edit}.png")


def judged(name: str, found: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Recall of copies with their originals and precision of pairs with a copy, by edit, and over all."""
    pairs = {(min(a, b), max(a, b)) for a, b in found}
    true = {pair for pair in pairs if pair[0][:5] == pair[1][:5]}
    with_original = {copy for pair in true for original, copy in [pair] if "-" not in original}
    with_original |= {original for original, copy in true if "-" not in copy}
    by_edit = {
        edit: sum(copy.endswith(f"-{edit}.png") for copy in with_original) / EDITED for edit in EDITS
    }  # fmt: skip
    right = {
        f"precision of {edit}": sum(pair in true for pair in part) / len(part)
        for edit in EDITS
        if (part := [pair for pair in pairs if any(path.endswith(f"-{edit}.png") for path in pair)])
    }
    return {"by": name, "precision": len(true) / max(len(pairs), 1), "false pairs": len(pairs - true),
            "recall": sum(by_edit.values()) / len(by_edit), **by_edit, **right}  # fmt: skip


def ours(connection: Connection, model: str, arguments: str = "") -> Pairs:
    rows = connection.execute(
        "select a.path, b.path from imgsearch.duplicates(model => %s, collection => 'searched'" + arguments + ") d "
        "join imgsearch.image a on a.image_id = d.image_a join imgsearch.image b on b.image_id = d.image_b",
        [model],
    ).fetchall()
    return set(rows)


def measure(url: str, model: LoadedModel, precision: float) -> None:
    with connect(url) as connection:
        request = calibrate.CalibrationRequest(precision=precision, collection="known", sample=50)
        found = calibrate.calibrate(connection, model, request, SILENT)
        calibrate.store(connection, model.stored, found)
        assert found.near is not None
    find(url, model.stored, found.near.value)


def main() -> dict[str, object]:
    """Search with a hash and a small network at measured thresholds, and with the peer's methods."""
    weights = str(DATA / "weights" / "mobilenetv2_100_backbone_timm.safetensors")
    rows = []
    with fresh_database() as (url, connection), TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        network = "timm:mobilenetv2_100"
        models = [open_model(connection, "pdq"), open_model(connection, network, Checkpoint(weights))]
        for part in ("known", "searched"):
            run.ingest(url, folder_source(folder / part), models, run.Options(collection=part))
        rows.append(judged("pdq, 31 bits, its default", ours(connection, "pdq")))
        measure(url, models[0], 0.9)
        measure(url, models[1], 0.8)
        rows.append(judged("pdq, measured for 0.9", ours(connection, "pdq")))
        rows.append(judged("MobileNetV2, measured for 0.8", ours(connection, network)))
        rows.append(judged("both", ours(connection, "pdq", f", also => '{{{network}}}', agree => 'all'")))
        rows.append(judged("either", ours(connection, "pdq", f", also => '{{{network}}}', agree => 'any'")))
        peer = run_peer(
            peer_python("imagededup", "imagededup==0.3.3.post2", "timm"),
            "imagededup_copies.py",
            str(folder / "searched"),
            weights,
        )
        rows += [judged(f"imagededup {method}", {(a, b) for a, b in found}) for method, found in peer.items()]
    best = max(rows[5:], key=lambda row: row["precision"])
    return report(
        "Copies: recall by hash or network over that of imagededup's most precise method", rows,
        rows[4]["recall"] / best["recall"], "above 1, and more precise",
    )  # fmt: skip


if __name__ == "__main__":
    main()
