"""The recall of an index: how many of the true neighbours it finds, and the ef_search that a wanted recall takes."""

from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, count_embeddings
from pgimgsearch.errors import ModelError, RecallError
from pgimgsearch.indexing.embedding_table import EmbeddingTable
from pgimgsearch.indexing.methods import MAX_DIMENSIONS

DEFAULT_RECALL = 0.99
NEIGHBOURS = 10
EF_SEARCH_GRID = [20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000]
FIRST_EF_SEARCH = 100  # after a build by another method than before
SAMPLE, MIN_SAMPLE, COMPARISONS = 50, 10, 20_000_000

MEASURE = """
select r.ef_search, avg(r.recall) as recall,
       percentile_cont(0.5) within group (order by r.milliseconds) as milliseconds
from imgsearch.model x cross join lateral jsonb_populate_record(x, %s) m,
     imgsearch._recalls(m, %s, imgsearch._sample_contents(m, %s), %s) r
where x.model_id = %s group by 1 order by 1
"""


@dataclass(frozen=True, slots=True)
class Recall:
    """The recall at an ef_search; None where there are too few vectors to have neighbours."""

    ef_search: int
    recall: float | None


def sample_size(rows: int, most: int = SAMPLE) -> int:
    """How many queries measure the recall over so many rows; each reads all vectors once."""
    return max(MIN_SAMPLE, min(most, COMPARISONS // max(rows, 1)))


def measure_recall(
    connection: Connection, model: StoredModel, grid: list[int], *, k: int = NEIGHBOURS, sample: int,
    index: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Recall@k at each ef_search, over ``sample`` stored vectors: ef_search, recall and median milliseconds, rising.

    ``index`` holds the fields of the model's row that describe another index than its present one.
    """
    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute(MEASURE, [Jsonb(index or {}), k, sample, grid, model.model_id]).fetchall()


def initial_ef_search(model: StoredModel, method: str) -> int:
    """The ef_search that a new index starts with: the model's own, unless it belonged to another method."""
    before = model.index_state.get("method") if model.index_method == "none" else model.index_method
    return model.ef_search if before in {method, None} else FIRST_EF_SEARCH


def reach_recall(
    connection: Connection, model: StoredModel, table: EmbeddingTable, method: str, state: dict[str, Any]
) -> Recall:
    """The ef_search for an index that was just built: the initial one, or of a new method what the recall takes.

    ``state`` is what it was built with. Raises RecallError where a quantized index never reaches it, as vectors of
    another kind were quantized. A graph that does not is kept, and its recall says so.
    """
    index = {"index_method": method, "index_state": state, "embeddings": f'imgsearch."{table.name}"'}
    sample = sample_size(state["rows"])
    initial = initial_ef_search(model, method)
    first = measure_recall(connection, model, [initial], sample=sample, index=index)
    if not first or first[0]["recall"] >= state["wanted"] or model.index_method == method:
        return Recall(initial, first[0]["recall"] if first else None)
    grid = [ef_search for ef_search in EF_SEARCH_GRID if ef_search > initial]
    more = measure_recall(connection, model, grid, sample=sample, index=index)
    found = next((row for row in more if row["recall"] >= state["wanted"]), None)
    if found is None and method == "hnsw-binary":
        raise _refused(connection, model, state, max((row["recall"] for row in more), default=first[0]["recall"]))
    return Recall(found["ef_search"], found["recall"]) if found else Recall(initial, first[0]["recall"])


def tune(connection: Connection, model: StoredModel, wanted: float, k: int, sample: int) -> list[dict[str, Any]]:
    """Measure recall@k for rising ef_search, and store the first that reaches ``wanted``. Returns the measurements.

    With more than ten neighbours a search raises ef_search by itself, so the stored value is never lowered by that,
    and the stored recall stays that of ten. Raises ModelError without an index, RecallError where none reaches it.
    """
    if model.index_method == "none":
        raise ModelError(f"{model.name} has no index", hint=f"run: pgimgsearch index build {model.name}")
    rows = measure_recall(connection, model, EF_SEARCH_GRID, k=k, sample=sample)
    if not rows:
        raise ModelError(f"{model.name} has too few vectors to have neighbours", hint="ingest images first")
    reaching = [row for row in rows if row["recall"] >= wanted]
    if not reaching:
        best = max(row["recall"] for row in rows)
        raise RecallError(
            f"no ef_search reaches a recall of {wanted}: the most is {best:.4f}",
            hint=f"rebuild it, as many changes make an index worse: pgimgsearch index build {model.name}"
            + ("; for many neighbours: --method hnsw" if model.index_method != "hnsw" and k > NEIGHBOURS else ""),
        )
    state, chosen = {}, max(reaching[0]["ef_search"], model.ef_search)
    if k <= NEIGHBOURS:
        chosen = reaching[0]["ef_search"]
        state = {"recall": reaching[0]["recall"], "wanted": wanted, "rows": count_embeddings(connection, model)}
    connection.execute(
        "update imgsearch.model set ef_search = %s, index_state = index_state || %s where model_id = %s",
        [chosen, Jsonb(state), model.model_id],
    )
    return rows


def _refused(connection: Connection, model: StoredModel, state: dict[str, Any], best: float) -> RecallError:
    """Record that a quantized index was refused at so many rows, and say what to build instead."""
    connection.execute(
        "update imgsearch.model set index_state = index_state || %s where model_id = %s",
        [Jsonb({"refused": state["rows"]}), model.model_id],
    )
    has_graph = model.dim <= MAX_DIMENSIONS[model.storage]
    other = "--method hnsw" if has_graph else f"--method hnsw-binary --recall {best - 0.01:.2f}"
    return RecallError(
        f"method hnsw-binary finds {best:.3f} of the true neighbours of {model.name}, not {state['wanted']}",
        hint=f"pgimgsearch index build {model.name} {other}",
    )
