"""The state of each model's index: method, validity, sizes, recall as last measured, and what to do about it."""

from typing import Any

from psycopg.rows import dict_row

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, list_models
from pgimgsearch.indexing.build import has_wanted_index, wants_index
from pgimgsearch.indexing.methods import index_row_bytes, index_spec
from pgimgsearch.indexing.recall import DEFAULT_RECALL

MANY = 10_000  # rows from which an index matters
DEAD, GROWN, BLOATED = 0.2, 2.0, 1.5

STATUS = """
select m.name as model, m.index_method as method, coalesce(i.valid, false) as valid, m.partitions,
       imgsearch._count(m.embeddings, false) as rows, coalesce(s.bytes, 0)::bigint as table_bytes,
       coalesce(i.bytes, 0)::bigint as index_bytes, m.ef_search, (m.index_state ->> 'recall')::float8 as recall,
       coalesce((m.index_state ->> 'wanted')::float8, %s) as wanted,
       to_regclass(format('imgsearch.%%I', imgsearch._embedding_table(m, 'shadow'))) is not null as has_shadow,
       coalesce(s.dead, 0)::bigint as dead, (m.index_state ->> 'rows')::bigint as built_rows
from imgsearch.model m join pg_class t on t.oid = m.embeddings cross join lateral (
    select sum(pg_total_relation_size(p.relid)) as bytes, sum(pg_stat_get_dead_tuples(p.relid)) as dead
    from (select m.embeddings union select relid from pg_partition_tree(m.embeddings)) p (relid)) s
cross join lateral (select bool_and(x.valid) as valid, sum(x.bytes) as bytes from imgsearch._indexes(m.embeddings) x
                    where x.stage = '' and x.method = m.index_method) i order by m.name
"""


def index_status(connection: Connection) -> list[dict[str, Any]]:
    """For each model: method, validity, rows, sizes in bytes, ef_search, recall as last measured, advice or None."""
    rows = connection.cursor(row_factory=dict_row).execute(STATUS, [DEFAULT_RECALL]).fetchall()
    by_name = {model.name: model for model in list_models(connection)}
    return [row | {"advice": advice(by_name[row["model"]], row)} for row in rows]


def advice(model: StoredModel, row: dict[str, Any]) -> str | None:
    """What to do about an index, the most urgent first; None where nothing has to be done."""
    build = f"pgimgsearch index build {model.name}"
    if row["has_shadow"]:
        return f"a shadow table holds vectors that are not in use yet; unless an ingest is running: {build}"
    if row["method"] == "none":
        how = "" if wants_index(model) else " --method auto"
        return f"searches read all {row['rows']} vectors: {build}{how}" if row["rows"] > MANY else None
    if not row["valid"]:
        return f"it is invalid or was dropped: {build} --concurrently"
    if not has_wanted_index(model):
        return f"its settings were changed since: {build} --concurrently"
    if row["recall"] is not None and row["recall"] < row["wanted"]:
        return f"its recall is too low: pgimgsearch index tune {model.name}"
    if row["rows"] > MANY:
        if row["dead"] > DEAD * row["rows"]:
            return f"{row['dead']} rows are dead: vacuum imgsearch.{model.table_name}"
        if row["index_bytes"] > BLOATED * row["rows"] * index_row_bytes(index_spec(model), row["method"]):
            return f"it is bloated: {build} --concurrently"
        if row["built_rows"] is not None and row["rows"] > GROWN * row["built_rows"]:
            again = f"pgimgsearch index tune {model.name}" if row["method"] == "hnsw" else f"{build} --concurrently"
            return f"it has grown since it was measured: {again}"
    return None
