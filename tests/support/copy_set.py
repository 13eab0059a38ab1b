"""A set for copy detection in the layout of DISC21, made of photos.

A query is a photo under one to three edits, or pasted small onto another photo.
"""

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from pgimgsearch.duplicates.edits import ALL

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
