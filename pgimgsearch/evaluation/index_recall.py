"""How many of the true neighbours a model's index finds, counted by distance.

Source: Aumüller, Bernhardsson and Faithfull 2018, "ANN-Benchmarks", arXiv:1807.05614, section 2.1.
"""

import numpy as np
from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.evaluation import metrics
from pgimgsearch.evaluation.context import SEED, Context, Evaluate, Outcome

QUESTIONS = 200
EF_SEARCH = (20, 40, 80, 160, 320)


def index(context: Context) -> Evaluate:
    """Compare the answers of the index with those of an exact search, at the model's ef_search and at others."""
    for model in context.models:
        if model.index_method == "none":
            raise ModelError(f"{model.name} has no index", hint=f"build it: pgimgsearch index build {model.name}")
    common = sorted(set.intersection(*(_contents(context.connection, model) for model in context.models)))
    wanted = min(context.request.sample or QUESTIONS, len(common))
    if not wanted:
        raise ModelError("the models have no image in common", hint="see: pgimgsearch stats")
    asking = np.random.default_rng(SEED).choice(np.array(common), wanted, replace=False).tolist()
    k = context.request.k
    if k >= len(common):
        raise UsageError(
            f"the models have {len(common)} images in common, so no {k} neighbours", hint="take a smaller --count"
        )

    def evaluate(model: StoredModel) -> Outcome:
        efs = sorted({*EF_SEARCH, model.ef_search})
        rows = context.connection.execute(
            "select r.ef_search, r.recall, r.milliseconds from imgsearch.model m, "
            "imgsearch._recalls(m, %s, %s, %s) r where m.model_id = %s",
            [k, asking, efs, model.model_id],
        ).fetchall()
        recalls = {ef: np.array([recall for own, recall, _ in rows if own == ef]) for ef in efs}
        if not len(recalls[model.ef_search]):
            raise ModelError(f"{model.name} has one vector, so no neighbours", hint="see: pgimgsearch stats")
        own = recalls[model.ef_search]
        median = float(np.median([ms for ef, _, ms in rows if ef == model.ef_search]))
        curve = metrics.Curve(np.array(efs, float), np.array([recalls[ef].mean() for ef in efs]))
        numbers = {"ef_search": float(model.ef_search), "index_ms": median}
        return Outcome({f"recall@{k}": metrics.mean(own)}, len(own), numbers, {"recall over ef_search": curve})

    return evaluate


def _contents(connection: Connection, model: StoredModel) -> set[int]:
    query = sql.SQL("select content_id from {}").format(model.table)
    return {row[0] for row in connection.execute(query).fetchall()}
