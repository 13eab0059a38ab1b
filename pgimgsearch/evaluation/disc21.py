"""Copy detection sets as DISC21 lays them out: folders of references and queries, and a truth as CSV.

Source: Douze et al. 2021, "The 2021 Image Similarity Dataset and Challenge", arXiv:2106.09672.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgimgsearch.errors import SourceError
from pgimgsearch.evaluation.context import Wish
from pgimgsearch.pipeline.rows import read_text

REFERENCES = ("references", "reference", "reference_images")
QUERIES = ("queries", "query", "query_images", "dev_queries", "test_queries", "final_queries")
BACKGROUND = ("train", "training", "training_images", "background")
HEADER = {"query_id", "reference_id", "query", "reference"}

Pair = tuple[str, str | None]  # query, reference; None where it has no match


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a set are; ``background`` are other pictures, to normalise on."""

    root: Path
    references: Path
    queries: Path
    truth: Path
    background: Path | None


def find(wish: Wish) -> Layout:
    """The parts of a set below a folder, where they are not named one by one."""
    root = wish.data
    if root is None or not root.is_dir():
        raise SourceError(
            "copy detection needs a folder with references/, queries/ and a ground truth as CSV",
            hint="pgimgsearch evaluate ./disc21 --protocol copy-detection --model NAME",
        )
    return Layout(
        root,
        wish.references or _only(root, [root / name for name in REFERENCES], "references", "--references"),
        wish.queries or _only(root, [root / name for name in QUERIES], "queries", "--queries"),
        wish.truth or _only(root, _truths(root), "ground truth (*ground*truth*.csv)", "--truth"),
        wish.background or next((root / name for name in BACKGROUND if (root / name).is_dir()), None),
    )


def read_truth(path: Path) -> list[Pair]:
    """Rows of query_id and reference_id, which is empty where there is no match; with or without a header."""
    return [(row[0], row[1] if len(row) > 1 and row[1] else None) for row in _rows(path, 1)]


def read_predictions(path: Path) -> list[tuple[str, str, float]]:
    """Rows of query_id, reference_id and score, the higher the likelier; with or without a header."""
    found = []
    for number, row in enumerate(_rows(path, 3), 1):
        try:
            found.append((row[0], row[1], float(row[2])))
        except ValueError as error:
            raise SourceError(
                f"{path}, row {number}: {row[2]} is no score", hint="rows are query_id,reference_id,score"
            ) from error
    return found


def _rows(path: Path, least: int) -> Iterator[list[str]]:
    rows = csv.reader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=""))
    for number, row in enumerate(rows):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 0 and set(cells) & HEADER):
            continue
        if len(cells) < least or not cells[0]:
            raise SourceError(
                f"{path}, line {number + 1} has {len(cells)} columns", hint="rows are query_id,reference_id[,score]"
            )
        yield cells


def _truths(root: Path) -> list[Path]:
    return sorted(file for file in root.glob("*.csv") if "truth" in file.name.lower())


def _only(root: Path, candidates: Sequence[Path], what: str, option: str) -> Path:
    found = [path for path in candidates if path.exists()]
    if len(found) == 1:
        return found[0]
    seen = f"there are {', '.join(path.name for path in found)}" if found else "there is none"
    raise SourceError(f"{root}: {what}: {seen}", hint=f"name it: {option} PATH")
