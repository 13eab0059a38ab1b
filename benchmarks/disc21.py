"""Copy detection on a set shaped as DISC21: which of three models finds edited photos, and what normalisation adds.

Reads the photos of PGIMGSEARCH_TEST_DATA. A query is a photo under one to three edits, or pasted small onto another
photo; half of the queries are of photos that are no references. ``python -m benchmarks.disc21 DIR`` only writes the set.
"""

import csv
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps

from benchmarks.harness import fresh_database, report
from pgimgsearch.duplicates.edits import ALL
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.evaluation.context import EvaluationRequest
from pgimgsearch.evaluation.protocols import BY_NAME
from pgimgsearch.evaluation.run import evaluate
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.reporter import Reporter

DATA = Path(os.environ.get("PGIMGSEARCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
LARGEST = 480  # pixels of the longer side: models see less
PASTED = 0.15  # of the queries, as an insert on another photo


def photos(data: Path) -> list[Path]:
    """All photos of products and scenes, in order."""
    folders = ("fashion", "clothing", "flickr")
    return sorted(path for name in folders for path in (data / name).rglob("*.jpg"))


def make(
    folder: Path, files: Sequence[Path], *, references: int, matched: int, unmatched: int, background: int, seed: int
) -> None:
    """Write references/, queries/, train/ and ground_truth.csv from disjoint parts of the files."""
    draw = random.Random(seed)
    files = draw.sample(list(files), references + unmatched + background)
    known, others, apart = (
        files[:references],
        files[references : references + unmatched],
        files[references + unmatched :],
    )
    for name in ("references", "queries", "train"):
        (folder / name).mkdir(parents=True)
    for number, path in enumerate(known):
        _open(path).save(folder / "references" / f"R{number:06}.jpg", quality=92)
    for number, path in enumerate(apart):
        _open(path).save(folder / "train" / f"T{number:06}.jpg", quality=92)
    asked = [(path, f"R{number:06}") for number, path in draw.sample(list(enumerate(known)), matched)]
    asked += [(path, "") for path in others]
    draw.shuffle(asked)
    with (folder / "ground_truth.csv").open("w", newline="") as file:
        truth = csv.writer(file)
        truth.writerow(["query_id", "reference_id"])
        for number, (path, reference) in enumerate(asked):
            edited(_open(path), draw, others).save(folder / "queries" / f"Q{number:05}.jpg", quality=85)
            truth.writerow([f"Q{number:05}", reference])


def edited(image: Image.Image, draw: random.Random, others: Sequence[Path]) -> Image.Image:
    """A query of a photo."""
    for edit in draw.sample(ALL, draw.randint(1, 3)):
        image = edit.make(image, draw)
    if draw.random() < PASTED:
        below = _open(draw.choice(others)).resize((LARGEST, LARGEST))
        image = ImageOps.contain(image, (LARGEST * 6 // 10, LARGEST * 6 // 10))
        below.paste(image, (draw.randint(0, LARGEST - image.width), draw.randint(0, LARGEST - image.height)))
        image = below
    return image


def _open(path: Path) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    image.thumbnail((LARGEST, LARGEST))
    return image


def main() -> None:
    """Write the set, evaluate three models plainly, and one with normalisation."""
    with TemporaryDirectory() as name, fresh_database() as (url, connection):
        folder = Path(name) / "disc21"
        make(folder, photos(DATA), references=1600, matched=300, unmatched=300, background=600, seed=21)
        weights = DATA / "weights"
        mobilenet = Checkpoint(str(weights / "mobilenetv2_100_backbone_timm.safetensors"))
        names = [
            open_model(connection, "timm:mobilenetv2_100", mobilenet).stored.name,
            open_model(connection, f"open_clip:{weights / 'openclip-mbv2-tiny'}").stored.name,
            open_model(connection, "pdq").stored.name,
        ]
        protocol = BY_NAME["copy-detection"]
        requests = {
            "plain": EvaluationRequest(models=names, data=folder),
            "score norm": EvaluationRequest(models=names, data=folder, score_norm=2),
            "score norm, whitened": EvaluationRequest(models=names[:2], data=folder, score_norm=2, whiten=128),
        }
        rows = []
        for how, request in requests.items():
            found = evaluate(url, protocol, request, device="cpu", trust=False, reporter=Reporter(print))
            for line in found.notes.told():
                print(line)
            rows += [
                {"model": result.model, "how": how}
                | {name: figure.value for name, figure in result.figures.items()}
                | {f"{name} interval": [figure.low, figure.high] for name, figure in result.figures.items()}
                for result in found.results
            ]
        micro = {(row["model"], row["how"]): row["micro-ap"] for row in rows}
        gain = micro[names[0], "score norm, whitened"] / micro[names[0], "plain"]
        report("Copy detection: micro-AP of MobileNetV2, normalised and whitened over plain", rows, gain, "above 1")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sizes = {"references": 1600, "matched": 300, "unmatched": 300, "background": 600}
        make(Path(sys.argv[1]), photos(DATA), **sizes, seed=21)
    else:
        main()
