"""How many of the true neighbours an index finds, and how far it must look for that."""

from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, count_embeddings
from pgimgsearch.errors import ModelError, RecallError
from pgimgsearch.indexing.methods import MOST_DIMENSIONS, ROUGH

RECALL = 0.99  # that an index shall have, where nobody says
NEIGHBOURS = 10
EFFORTS = [1, 2, 3, 5, 8, 12, 20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000]  # values of ef_search to try
LEAST = {"hnsw": 20, "hnsw-binary": 20, "ivfflat": 1, "diskann": 20}
FIRST = {"hnsw": 100, "hnsw-binary": 100, "ivfflat": 1, "diskann": 100}  # after a build by another method than before
SAMPLE, LEAST_SAMPLE, COMPARISONS = 50, 10, 20_000_000


@dataclass(frozen=True, slots=True)
class Recall:
    """The recall at an ef_search; None where there are too few vectors to have neighbours."""

    ef_search: int
    recall: float | None


def sample_for(rows: int, most: int = SAMPLE) -> int:
    """How many questions are asked of so many rows: each reads all vectors once."""
    return max(LEAST_SAMPLE, min(most, COMPARISONS // max(rows, 1)))


def measured(
    connection: Connection, model: StoredModel, efforts: list[int], *, k: int = NEIGHBOURS, sample: int,
    by: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Recall@k over ``sample`` stored vectors by the model's index, or by one that it has not yet, of which ``by`` says
    what the model's row will. A row for each effort, rising: ef_search, recall, and the median milliseconds of a query.
    """
    return (
        connection.cursor(row_factory=dict_row)
        .execute(
            "select r.ef_search, avg(r.recall) as recall, "
            "percentile_cont(0.5) within group (order by r.milliseconds) as milliseconds "
            "from imgsearch.model x cross join lateral jsonb_populate_record(x, %s) m, "
            "imgsearch._recalls(m, %s, imgsearch._drawn(m, %s), %s) r where x.model_id = %s group by 1 order by 1",
            [Jsonb(by or {}), k, sample, efforts, model.model_id],
        )
        .fetchall()
    )


def first_effort(model: StoredModel, method: str) -> int:
    """The effort that an index starts with: the model's own, unless it was that of another method."""
    former = model.index_parameters.get("method") if model.index_method == "none" else model.index_method
    kept = former == method or (former is None and method != "ivfflat")
    return model.ef_search if kept else FIRST[method]


def reached(connection: Connection, model: StoredModel, method: str, noted: dict[str, Any]) -> Recall:
    """The effort for an index that was just built: its first one, or of another method than before as much as it takes.

    ``noted`` is what it was built with. Raises RecallError where a rough index never does, as vectors of another kind
    are cut by it. A graph that does not is kept with the effort it had: its recall says so.
    """
    by = {"index_method": method, "index_parameters": noted, "embeddings": f"imgsearch.{model.table_name}"}
    sample = sample_for(noted["rows"])
    kept = first_effort(model, method)
    first = measured(connection, model, [kept], sample=sample, by=by)
    if not first or first[0]["recall"] >= noted["wanted"] or model.index_method == method:
        return Recall(kept, first[0]["recall"] if first else None)
    more = measured(connection, model, [effort for effort in EFFORTS if effort > kept], sample=sample, by=by)
    found = next((row for row in more if row["recall"] >= noted["wanted"]), None)
    if found is None and method in ROUGH:
        connection.execute(
            "update imgsearch.model set index_parameters = index_parameters || %s where model_id = %s",
            [Jsonb({"refused": noted["rows"]}), model.model_id],
        )
        most = max((row["recall"] for row in more), default=first[0]["recall"])
        other = (
            "--method hnsw"
            if model.dim <= MOST_DIMENSIONS[model.storage]
            else f"--method {method} --recall {most - 0.01:.2f}"
        )
        raise RecallError(
            f"method {method} finds {most:.3f} of the true neighbours of {model.name}, not {noted['wanted']}",
            hint=f"pgimgsearch index build {model.name} {other}",
        )
    return Recall(found["ef_search"], found["recall"]) if found else Recall(kept, first[0]["recall"])


def tune(connection: Connection, model: StoredModel, wanted: float, k: int, sample: int) -> list[dict[str, Any]]:
    """Measure recall@k for rising ef_search; store the first that reaches ``wanted``. Returns what was measured.

    For more than ten neighbours a search looks further by itself, so that the effort is never lowered by that, and the
    recall that is noted stays that of ten. Raises ModelError where no ef_search reaches it, or there is no index.
    """
    if model.index_method == "none":
        raise ModelError(f"{model.name} has no index", hint=f"run: pgimgsearch index build {model.name}")
    efforts = [effort for effort in EFFORTS if effort >= LEAST[model.index_method]]
    rows = measured(connection, model, efforts, k=k, sample=sample)
    if not rows:
        raise ModelError(f"{model.name} has too few vectors to have neighbours", hint="ingest pictures first")
    reaching = [row for row in rows if row["recall"] >= wanted]
    if not reaching:
        best = max(row["recall"] for row in rows)
        raise RecallError(
            f"no ef_search reaches a recall of {wanted}: the most is {best:.4f}",
            hint=f"build it anew, as many changes make an index worse: pgimgsearch index build {model.name}"
            + ("; for many neighbours: --method hnsw" if model.index_method != "hnsw" and k > NEIGHBOURS else ""),
        )
    noted, chosen = {}, max(reaching[0]["ef_search"], model.ef_search)
    if k <= NEIGHBOURS:
        chosen = reaching[0]["ef_search"]
        noted = {"recall": reaching[0]["recall"], "wanted": wanted, "rows": count_embeddings(connection, model)}
    connection.execute(
        "update imgsearch.model set ef_search = %s, index_parameters = index_parameters || %s where model_id = %s",
        [chosen, Jsonb(noted), model.model_id],
    )
    return rows
