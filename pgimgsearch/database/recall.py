"""How many of the true neighbours an index finds, and how far it must look for that."""

from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import ModelError, RecallError

RECALL = 0.99  # that an index shall have, where nobody says
NEIGHBOURS = 10
EFFORTS = [1, 2, 3, 5, 8, 12, 20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000]  # values of ef_search to try
LEAST = {"hnsw": 20, "hnsw-binary": 20, "ivfflat": 1}
FIRST = {"hnsw": 100, "hnsw-binary": 100, "ivfflat": 1}  # after a build by another method than before
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
    connection: Connection, model: StoredModel, method: str, efforts: list[int], *, k: int = NEIGHBOURS, sample: int
) -> list[dict[str, Any]]:
    """Recall@k over ``sample`` stored vectors by an index of that method, which need not be the model's yet.

    A row for each effort, rising: ef_search, recall, and the median milliseconds of a query.
    """
    return (
        connection.cursor(row_factory=dict_row)
        .execute(
            "select r.ef_search, avg(r.recall) as recall, "
            "percentile_cont(0.5) within group (order by r.milliseconds) as milliseconds "
            "from imgsearch.model x cross join lateral jsonb_populate_record(x, %s) m, "
            "imgsearch._recalls(m, %s, imgsearch._drawn(m, %s), %s) r where x.model_id = %s group by 1 order by 1",
            [Jsonb({"index_method": method}), k, sample, efforts, model.model_id],
        )
        .fetchall()
    )


def reached(connection: Connection, model: StoredModel, method: str, wanted: float, rows: int) -> Recall:
    """The effort for an index that was just built: the model's own, or that of a new method, raised until it reaches.

    Raises RecallError where bits never do, as vectors of another kind are cut by it. A graph that does not is kept with
    the effort it had: its recall says so.
    """
    kept = model.ef_search if model.index_method == method else FIRST[method]
    sample = sample_for(rows)
    first = measured(connection, model, method, [kept], sample=sample)
    if not first or first[0]["recall"] >= wanted or model.index_method == method:
        return Recall(kept, first[0]["recall"] if first else None)
    more = measured(connection, model, method, [effort for effort in EFFORTS if effort > kept], sample=sample)
    found = next((row for row in more if row["recall"] >= wanted), None)
    if found is None and method == "hnsw-binary":
        raise RecallError(
            f"bits of {model.name} find {max(row['recall'] for row in more):.3f} of the true neighbours, not {wanted}",
            hint=f"pgimgsearch index build {model.name} --method hnsw; or ask for less: --recall",
        )
    return Recall(found["ef_search"], found["recall"]) if found else Recall(kept, first[0]["recall"])


def tune(connection: Connection, model: StoredModel, wanted: float, k: int, sample: int) -> list[dict[str, Any]]:
    """Measure recall@k for rising ef_search; store the first that reaches ``wanted``. Returns what was measured.

    Raises ModelError where no ef_search reaches it, or there is no index.
    """
    if model.index_method == "none":
        raise ModelError(f"{model.name} has no index", hint=f"run: pgimgsearch index build {model.name}")
    efforts = [effort for effort in EFFORTS if effort >= LEAST[model.index_method]]
    rows = measured(connection, model, model.index_method, efforts, k=k, sample=sample)
    reaching = [row for row in rows if row["recall"] >= wanted]
    if not reaching:
        best = max((row["recall"] for row in rows), default=0.0)
        raise RecallError(
            f"no ef_search reaches a recall of {wanted}: the most is {best:.4f}",
            hint=f"build it anew, as many changes make an index worse: pgimgsearch index build {model.name}",
        )
    connection.execute(
        "update imgsearch.model set ef_search = %s, index_parameters = index_parameters || %s where model_id = %s",
        [reaching[0]["ef_search"], Jsonb({"recall": reaching[0]["recall"]}), model.model_id],
    )
    return rows
