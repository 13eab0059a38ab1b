"""Each model's index as it is: method, validity, sizes, what it was measured to find, and what to do about it."""

from typing import Any

from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.indexing import build as index
from pgimgsearch.indexing.index_names import SUFFIXES
from pgimgsearch.indexing.methods import index_row_bytes
from pgimgsearch.indexing.recall import RECALL

MANY = 10_000  # rows from which on it matters
DEAD, GROWN, BLOATED = 0.2, 2.0, 1.5

STATUS = """
select m.name as model, m.index_method as method, coalesce(x.indisvalid, false) as valid,
       m.partitions, imgsearch._count(m.embeddings, false) as rows, coalesce(s.bytes, 0)::bigint as table_bytes,
       coalesce(b.bytes, 0)::bigint as index_bytes, m.ef_search,
       (m.index_parameters ->> 'recall')::double precision as recall,
       coalesce((m.index_parameters ->> 'wanted')::double precision, {recall}) as wanted,
       to_regclass(format('imgsearch.embeddings_%s_aside', m.model_id)) is not null as beside,
       coalesce(s.dead, 0)::bigint as dead, (m.index_parameters ->> 'rows')::bigint as built_rows
from imgsearch.model m join pg_class t on t.oid = m.embeddings
cross join lateral (
    select sum(pg_total_relation_size(p.relid)) as bytes, sum(pg_stat_get_dead_tuples(p.relid)) as dead
    from (select m.embeddings union select relid from pg_partition_tree(m.embeddings)) p (relid)) s
left join pg_class i on i.relnamespace = t.relnamespace and i.relname = t.relname
    || coalesce({suffixes} ->> m.index_method, '')
left join pg_index x on x.indexrelid = i.oid
cross join lateral (
    select sum(pg_relation_size(p.relid)) as bytes
    from (select x.indexrelid union select relid from pg_partition_tree(x.indexrelid)) p (relid)) b order by m.name
"""


def status(connection: Connection) -> list[dict[str, Any]]:
    """For each model: method, validity, rows, sizes in bytes, ef_search, recall as last measured, advice or None."""
    rows = (
        connection.cursor(row_factory=dict_row)
        .execute(sql.SQL(STATUS).format(recall=RECALL, suffixes=Jsonb(SUFFIXES)))
        .fetchall()
    )
    models = {model.name: model for model in store.models(connection)}
    return [row | {"advice": advice(models[row["model"]], row)} for row in rows]


def advice(model: StoredModel, row: dict[str, Any]) -> str | None:
    """What to do about an index, the most urgent first; None where nothing has to be done."""
    build = f"pgimgsearch index build {model.name}"
    if row["beside"]:
        return f"vectors lie beside its table, not in use yet; unless an ingest is at it: {build}"
    if row["method"] == "none":
        how = "" if index.is_wanted(model) else " --method auto"
        return f"searches read all {row['rows']} vectors: {build}{how}" if row["rows"] > MANY else None
    if not row["valid"]:
        return f"it is invalid or gone: {build} --concurrently"
    if not index.is_fulfilled(model):
        return f"another was wished for since: {build} --concurrently"
    if row["recall"] is not None and row["recall"] < row["wanted"]:
        return f"it misses neighbours: pgimgsearch index tune {model.name}"
    if row["rows"] > MANY:
        if row["dead"] > DEAD * row["rows"]:
            return f"{row['dead']} rows are dead: vacuum imgsearch.{model.table_name}"
        if row["index_bytes"] > BLOATED * row["rows"] * index_row_bytes(model, row["method"]):
            return f"it holds much that is gone: {build} --concurrently"
        if row["built_rows"] is not None and row["rows"] > GROWN * row["built_rows"]:
            again = f"pgimgsearch index tune {model.name}" if row["method"] == "hnsw" else f"{build} --concurrently"
            return f"it has grown since it was measured: {again}"
    return None
