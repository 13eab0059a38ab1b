"""Rates for a plan, measured on this database and device."""

import time

from psycopg import errors as pg
from psycopg import sql

from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.memory import MEGABYTE
from pgimgsearch.database.models import DEFAULT_INDEX_SPEC, count_embeddings, find_model
from pgimgsearch.embeddings.registry import Loader, find_stored, look_up
from pgimgsearch.errors import ModelError
from pgimgsearch.indexing.methods import IndexSpec, build_memory, index_row_bytes, index_spec, memory_limit
from pgimgsearch.indexing.status import index_status
from pgimgsearch.models import lookup
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.runtime.cpu_parallel import cores
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.operations.plan import GIGABYTE, PlannedModel, Rates, table_row_bytes

IMAGE_ROWS = 700.0  # bytes of content and image with their indexes, where too few are stored to measure
MEASURABLE = 10_000  # rows; of fewer, a table's size says little
TRIAL_ROWS = 10_000
INGESTED = 200  # images of a run that says how fast it goes
TIMED_BATCHES = 3

RANDOM_BITS = (
    "(select string_agg((random() < 0.5)::int::text, '') from generate_series(1, {dim}) where n > 0)::bit({dim})"
)
RANDOM_VECTOR = "(select array_agg(random() - 0.5) from generate_series(1, {dim}) where n > 0)::{kind}({dim})"
TRIAL_TABLE = "create unlogged table imgsearch.plan_trial as select {} as embedding from generate_series(1, {}) n"
TRIAL_INDEX = "create index on imgsearch.plan_trial using hnsw (embedding {}) with (m = {}, ef_construction = {})"


def measure_rates(
    connection: Connection, model: PlannedModel, *, remote: bool, placement: Placement | None, trust: bool = False
) -> Rates:
    """Measure on this database; with ``placement`` also how fast the model is there, which loads it."""
    sources: dict[str, str] = {}
    table_row, index_row = _row_bytes(connection, model, sources)
    image_row = _image_bytes(connection, sources)
    trial = trial_build(connection, model.index, memory_limit(connection, remote=remote))
    if trial is not None:
        sources["index build"] = f"a trial with {TRIAL_ROWS} random vectors, {trial:.1f} s"
    if placement is None:
        speed = _ingested(connection, model, sources)
    else:
        speed = _timed(connection, model, placement, trust)
        sources["embedding"] = "the encoder alone, measured now"
    return Rates(table_row, index_row, image_row, TRIAL_ROWS if trial else 0, trial or 0.0, speed, sources)


def planned_model(connection: Connection, name: str) -> PlannedModel:
    """The stored model of a name, or one of the catalog, which this does not store."""
    stored = find_stored(connection, name)
    if stored is not None:
        return PlannedModel(stored.name, index_spec(stored), stored.partitions, stored.full_dim is not None)
    spec = lookup.resolve(name)
    if not spec.dim:
        raise ModelError(
            f"the number of dimensions of {name} is known only once it is loaded",
            hint=f"run: pgimgsearch models add {name}",
        )
    wanted = DEFAULT_INDEX_SPEC
    return PlannedModel(
        spec.name,
        IndexSpec(spec.dim, spec.storage, wanted["method"], wanted["m"], wanted["ef_construction"]),
    )


def server_memory(connection: Connection, *, remote: bool, gigabytes: float | None) -> float:
    """Bytes of memory of the database's server: as given, else this machine's; of a remote one by its settings."""
    if gigabytes is not None:
        return gigabytes * GIGABYTE
    return 4.0 * memory_limit(connection, remote=remote) * MEGABYTE


def trial_build(connection: Connection, spec: IndexSpec, limit: int) -> float | None:
    """Seconds to index random vectors, in a table that is rolled back: of a graph, what they hold matters little.

    None where no graph is wanted, or this role may not create a table.
    """
    method = spec.method
    if method == "none":
        return None
    kind = spec.indexed_type(method)
    schema, dim = vector_schema(connection), sql.Literal(spec.dim)
    values = sql.SQL(RANDOM_BITS if kind == "bit" else RANDOM_VECTOR).format(dim=dim, kind=sql.SQL(f"{schema}.{kind}"))
    operators = "bit_hamming_ops" if kind == "bit" else f"{kind}_cosine_ops"
    statement = sql.SQL(TRIAL_INDEX).format(
        sql.SQL(f"{schema}.{operators}"), sql.Literal(spec.m), sql.Literal(spec.ef_construction)
    )
    memory = build_memory(TRIAL_ROWS, spec, method, limit)
    with connection.transaction(force_rollback=True):
        try:
            connection.execute(sql.SQL(TRIAL_TABLE).format(values, sql.Literal(TRIAL_ROWS)))
        except pg.InsufficientPrivilege:
            return None
        connection.execute("alter table imgsearch.plan_trial set (parallel_workers = 2)")  # as a large one has
        connection.execute("select set_config('maintenance_work_mem', %s, true)", [f"{memory}MB"])
        start = time.perf_counter()
        connection.execute(statement)
        return time.perf_counter() - start


def _row_bytes(connection: Connection, model: PlannedModel, sources: dict[str, str]) -> tuple[float, float]:
    """Bytes of a row in the table and in the index: measured where enough rows are stored, else by layout."""
    stored = find_model(connection, model.name)
    rows = count_embeddings(connection, stored) if stored else 0
    method = model.index.method
    by_layout = 0.0 if method == "none" else index_row_bytes(model.index, method)
    if rows < MEASURABLE:
        sources["disk"] = "the layout of pages, as too few vectors are stored to measure"
        return table_row_bytes(model.index), by_layout
    sizes = next(row for row in index_status(connection) if row["model"] == model.name)
    sources["disk"] = f"{rows} stored vectors"
    stored_index, as_wanted = sizes["index_bytes"] / rows, sizes["method"] == method != "none"
    return (sizes["table_bytes"] - sizes["index_bytes"]) / rows, stored_index if as_wanted else by_layout


def _image_bytes(connection: Connection, sources: dict[str, str]) -> float:
    """Bytes of an image beside its vectors: its rows in image and content, with their indexes."""
    row = connection.execute(
        "select (select count(*) from imgsearch.image), (select sum(pg_total_relation_size(r::regclass)) "
        "from unnest(array['imgsearch.image', 'imgsearch.content']) r)"
    ).fetchone()
    if row is None or row[0] < MEASURABLE:
        return IMAGE_ROWS
    sources["images"] = f"{row[0]} stored images"
    return float(row[1]) / float(row[0])


def _ingested(connection: Connection, model: PlannedModel, sources: dict[str, str]) -> float | None:
    """Images a second from end to end, in the last run that embedded a few hundred."""
    row = connection.execute(
        "select r.embedded / r.seconds, r.device, r.run_id from (select run_id, "
        "placement -> %(name)s ->> 'device' as device, (counts -> %(name)s ->> 'embedded')::float as embedded, "
        "extract(epoch from ended_at - started_at)::float - coalesce((timings -> 'load' ->> 'seconds')::float, 0) "
        "as seconds from imgsearch.ingest_run where collection_id is not null) r "
        "where r.embedded >= %(least)s and r.seconds > 0.001 order by r.run_id desc limit 1",
        {"name": model.name, "least": INGESTED},
    ).fetchone()
    if row is None:
        sources["embedding"] = "not measured: ingest a few hundred images, or --measure"
        return None
    sources["embedding"] = f"ingest run {row[2]}, from end to end, on {row[1]}"
    return float(row[0])


def _timed(connection: Connection, model: PlannedModel, placement: Placement, trust: bool) -> float:
    from PIL import Image

    _, spec = look_up(connection, model.name, Checkpoint(trust=trust))
    encoder = Loader(placement).load(spec)
    pictures = [Image.effect_noise((640, 480), 40).convert("RGB")] * spec.batch_size
    encoder.embed([encoder.prepare(picture) for picture in pictures])  # warms up
    start = time.perf_counter()
    prepared = [encoder.prepare(picture) for picture in pictures]
    preparing = (time.perf_counter() - start) / len(pictures) / cores()
    start = time.perf_counter()
    for _ in range(TIMED_BATCHES):
        encoder.embed(prepared)
    forward = (time.perf_counter() - start) / len(pictures) / TIMED_BATCHES
    seconds = max(preparing, forward) if encoder.device != "cpu" else preparing + forward  # a GPU has cores beside it
    return 1 / seconds
