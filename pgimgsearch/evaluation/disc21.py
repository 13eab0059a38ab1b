"""Copy detection sets as DISC21 lays them out: folders of references and queries, and a truth as CSV.

Source: Douze et al. 2021, "The 2021 Image Similarity Dataset and Challenge", arXiv:2106.09672.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.evaluation.context import EvaluationRequest
from pgimgsearch.sources.rows import read_text

REFERENCES = ("references", "reference", "reference_images")
QUERIES = ("queries", "query", "query_images", "dev_queries", "test_queries", "final_queries")
BACKGROUND = ("train", "training", "training_images", "background")
HEADER = ({"query_id", "query"}, {"reference_id", "reference"}, {"score"})

Pair = tuple[str, str | None]  # query, reference; None where it has no match


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a set are; ``background`` are other images, to normalise on."""

    root: Path
    references: Path
    queries: Path
    truth: Path
    background: Path | None


def find(request: EvaluationRequest) -> Layout:
    """The parts of a set below a folder, where they are not named one by one."""
    root = request.data
    if root is None or not root.is_dir():
        raise SourceError(
            "copy detection needs a folder with references/, queries/ and a ground truth as CSV",
            hint="pgimgsearch evaluate ./disc21 --protocol copy-detection --model NAME",
        )
    normalises = request.score_norm is not None or request.whiten is not None
    if request.background and not normalises:
        raise UsageError("--background is for --score-norm and --whiten", hint="leave it out, or add one of them")
    return Layout(
        root,
        _folder(root, request.references, REFERENCES, "references", "--references"),
        _folder(root, request.queries, QUERIES, "queries", "--queries"),
        request.truth or _only(root, _truths(root), "ground truth (*ground*truth*.csv)", "--truth"),
        _folder(root, request.background, BACKGROUND, "images to normalise on", "--background") if normalises else None,
    )


def read_truth(path: Path) -> list[Pair]:
    """Rows of query_id and reference_id, which is empty where there is no match; with or without a header."""
    return [(query, reference or None) for query, reference, _ in _rows(path)]


def read_predictions(path: Path) -> list[tuple[str, str, float]]:
    """Rows of query_id, reference_id and score, the higher the likelier; with or without a header."""
    found = []
    for query, reference, text in _rows(path):
        try:
            score = float(text)
        except ValueError:
            score = float("nan")
        if not math.isfinite(score) or not reference:
            raise SourceError(
                f"{path}: {query},{reference},{text} is no prediction", hint="rows are query_id,reference_id,score"
            )
        found.append((query, reference, score))
    return found


def _rows(path: Path) -> list[tuple[str, str, str]]:
    """Query, reference and score of each row, empty where there is none; columns as a header says, else in order."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    cells = [[cell.strip() for cell in row] for row in rows]
    cells = [row for row in cells if any(row)]
    columns = [0, 1, 2]
    if cells and set(cells[0]) & {"query_id", "query"}:
        header = cells.pop(0)
        columns = [next((n for n, cell in enumerate(header) if cell in names), len(header)) for names in HEADER]
    if not cells:
        raise SourceError(f"{path} has no rows", hint="rows are query_id,reference_id, empty where there is no match")
    wide = [row + [""] * (max(columns) + 1 - len(row)) for row in cells]
    return [(row[columns[0]], row[columns[1]], row[columns[2]]) for row in wide]


def _folder(root: Path, given: Path | None, names: Sequence[str], what: str, option: str) -> Path:
    if given is None:
        return _only(root, [root / name for name in names], what, option)
    if not given.is_dir():
        raise SourceError(f"there is no folder {given}", hint=f"name the {what}: {option} DIR")
    return given


def _truths(root: Path) -> list[Path]:
    return sorted(file for file in root.glob("*.csv") if "truth" in file.name.lower())


def _only(root: Path, candidates: Sequence[Path], what: str, option: str) -> Path:
    found = [path for path in candidates if path.exists()]
    if len(found) == 1:
        return found[0]
    seen = f"there are {', '.join(path.name for path in found)}" if found else "there is none"
    raise SourceError(f"{root}: {what}: {seen}", hint=f"name it: {option} PATH")
