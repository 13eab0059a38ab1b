"""The figures of ``evaluate`` once more, by plain loops in double precision over what SQL says of the vectors.

Nothing of pgimgsearch.evaluation is used here. Each function answers figure -> value.
"""

import csv
import math
from collections import Counter, defaultdict
from pathlib import Path, PurePath

from pgimgsearch.database.connection import Connection

Vector = list[float]
DECIMALS = 6


def vectors(connection: Connection, model: str, collection: str) -> dict[str, Vector]:
    """Path -> vector of length one; bits become -1 and 1."""
    rows = connection.execute(
        "select m.embeddings::text, m.storage from imgsearch.model m where m.name = %s", [model]
    ).fetchone()
    assert rows is not None
    table, storage = rows
    found = connection.execute(
        f"select i.path, e.embedding::text from {table} e join imgsearch.image i using (content_id) "
        "join imgsearch.collection c using (collection_id) where c.name = %s", [collection],
    ).fetchall()  # fmt: skip
    plain = {
        path: [2.0 * int(bit) - 1 for bit in text]
        if storage == "bit"
        else [float(v) for v in text.strip("[]").split(",")]
        for path, text in found
    }
    return {path: [value / math.hypot(*vector) for value in vector] for path, vector in plain.items()}


def similarity(a: Vector | None, b: Vector | None, *, bits: bool) -> float:
    """Cosine, or the share of equal bits; nothing is like what has no vector."""
    if a is None or b is None:
        return -math.inf
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return round((product + 1) / 2 if bits else product, DECIMALS)


def ranked(scores: dict[str, float], right: set[str]) -> list[str]:
    """Best first, of equal ones the wrong first; what has no vector never comes."""
    known = [name for name, score in scores.items() if score > -math.inf]
    return sorted(known, key=lambda name: (-scores[name], name in right))


def copy_detection(
    known: dict[str, Vector], folder: Path, *, bits: bool
) -> tuple[dict[str, float], list[list[object]]]:
    """Of a set in DISC21's layout, whose images all differ; with the predictions as rows of a CSV."""
    references = {path.stem: f"references/{path.name}" for path in (folder / "references").iterdir()}
    queries = {path.stem: f"queries/{path.name}" for path in (folder / "queries").iterdir()}
    with (folder / "ground_truth.csv").open() as file:
        truth = {row["query_id"]: row["reference_id"] for row in csv.DictReader(file)}
    predictions, first, matched = [], {}, 0
    for query, path in queries.items():
        right = {truth[query]} - {""}
        matched += len(right)
        scores = {name: similarity(known.get(path), known.get(at), bits=bits) for name, at in references.items()}
        order = ranked(scores, right)
        if right:
            first[query] = next((place for place, name in enumerate(order, 1) if name in right), math.inf)
        predictions += [[query, name, scores[name]] for name in order[:10]]
    ordered = sorted(predictions, key=lambda row: (-row[2], truth[row[0]] == row[1]))
    hits, area, best = 0, 0.0, 0.0
    for place, (query, name, _) in enumerate(ordered, 1):
        if truth[query] == name:
            hits += 1
            area += hits / place
        if hits / place >= 0.9:
            best = hits / matched
    figures = {f"r@{k}": sum(place <= k for place in first.values()) / matched for k in (1, 3)}
    return figures | {"micro-ap": area / matched, "r@p90": best}, predictions


def same_label(known: dict[str, Vector], labels: dict[str, str], *, bits: bool) -> dict[str, float]:
    """Leave one out over labelled paths: mAP and recall as instances have them, precision and kNN as classes do."""
    sizes = Counter(labels.values())
    asking = [path for path, label in labels.items() if sizes[label] > 1]
    sums: dict[str, float] = defaultdict(float)
    for path in asking:
        right = {other for other, label in labels.items() if label == labels[path] and other != path}
        scores = {o: similarity(known.get(path), known.get(o), bits=bits) for o in labels if o != path}
        order = ranked(scores, right)
        places = [place for place, name in enumerate(order, 1) if name in right]
        sums["map"] += sum(number / place for number, place in enumerate(places, 1)) / len(right)
        for k in (1, 5, 10):
            sums[f"r@{k}"] += bool(places) and places[0] <= k
            sums[f"p@{k}"] += sum(place <= k for place in places) / k
        votes: dict[str, float] = defaultdict(float)
        for name in order[:20]:
            votes[labels[name]] += math.exp(scores[name] / 0.07)
        winner = max(votes, key=votes.__getitem__, default="")
        sums["knn"] += winner == labels[path]
    return {name: total / len(asking) for name, total in sums.items()}


def pairs_found(
    known: dict[str, Vector], true: set[frozenset[str]], threshold: float, *, bits: bool
) -> dict[str, float]:
    """Precision, recall, F1 and average precision over all pairs of paths, whose images all differ."""
    names = sorted(known)
    scored = [
        (similarity(known[a], known[b], bits=bits), frozenset((a, b)))
        for number, a in enumerate(names) for b in names[number + 1:]
    ]  # fmt: skip
    taken = [pair for score, pair in scored if score >= threshold]
    right = sum(pair in true for pair in taken)
    precision, recall = right / len(taken), right / len(true)
    area, hits, best = 0.0, 0, 0.0
    ordered = sorted(scored, key=lambda row: (-row[0], row[1] in true))
    for place, (score, pair) in enumerate(ordered, 1):
        hits += pair in true
        area += (pair in true) * hits / place
        if place == len(ordered) or ordered[place][0] != score:
            best = max(best, 2 * hits / (place + len(true)))
    f1 = 2 * precision * recall / (precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1, "ap": area / len(true), "best-f1": best}


def label_of(path: str) -> str:
    """The folder that a path lies in."""
    return PurePath(path).parent.name
