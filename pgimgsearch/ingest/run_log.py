"""The log of runs in the database: one run a collection at a time, started, counted and ended."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from psycopg.types.json import Jsonb

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import BusyError, ModelError
from pgimgsearch.ingest.item import Counts
from pgimgsearch.ingest.stopwatch import Stopwatch
from pgimgsearch.models.encoder import Encoder

BACKFILL = "models fill"  # the source of a run that reads stored images


def lock_collection(session: Session, collection_id: int, name: str) -> None:
    """Hold a collection for this run; runs that killed processes left open, of any collection, are closed."""

    def take(connection: Connection) -> None:
        if not locks.take(connection, locks.INGEST, collection_id):
            raise BusyError(
                f"another ingest into collection {name} is running", hint="wait for it, or stop it with Ctrl-C"
            )

    session.prepare(take)
    session.connection.execute(
        "update imgsearch.ingest_run u set status = 'interrupted' where u.run_id in ("
        "select r.run_id from imgsearch.ingest_run r where r.status = 'running' "
        "and (r.collection_id = %s or r.run_id in (select imgsearch._stale_runs())) limit 1000 for update skip locked)",
        [collection_id],
    )


def start_run(connection: Connection, collection_id: int, label: str, models: Sequence[StoredModel]) -> int:
    """Start a run and return its run_id."""
    row = connection.execute(
        "insert into imgsearch.ingest_run (collection_id, source, models) values (%s, %s, %s) returning run_id",
        [collection_id, label.encode()[:2000].decode("utf-8", "ignore"), [model.name for model in models]],
    ).fetchone()
    assert row is not None
    return int(row[0])


def store_counts(connection: Connection, run_id: int, counts: Counts) -> None:
    """Store how far a run is."""
    connection.execute(
        "update imgsearch.ingest_run set counts = %s where run_id = %s", [Jsonb(counts.as_dict()), run_id]
    )


def check_models(connection: Connection, models: Sequence[StoredModel], error: BaseException) -> None:
    """Raise ModelError, in place of what came of it, where another session has removed a model of this run."""
    row = connection.execute(
        "select array_agg(n) from unnest(%s::integer[], %s::text[]) w (id, n) "
        "where not exists (select from imgsearch.model m where m.model_id = w.id)",
        [[model.model_id for model in models], [model.name for model in models]],
    ).fetchone()
    if row is not None and row[0]:
        names = ", ".join(row[0])
        raise ModelError(
            f"another session removed {names} while this ran", hint="run it again, to add it anew, or without it"
        ) from error


def settle_shards(session: Session, collection_id: int, run_id: int, shards: Sequence[str]) -> None:
    """Delete failures of whole shards that this complete run has read to their ends."""
    if shards:
        session.run(
            lambda: session.connection.execute(
                "delete from imgsearch.ingest_failure f using imgsearch.ingest_run r where r.run_id = %s "
                "and f.collection_id = %s and f.key = any(%s) and f.last_at < r.started_at",
                [run_id, collection_id, list(shards)],
            )
        )


def end_run(
    connection: Connection, run_id: int, status: str, counts: Counts, watch: Stopwatch, loaded: Sequence[LoadedModel]
) -> None:
    """End a run with its counts, the times of its stages, and where the networks ran that were loaded."""
    placement = {model.stored.name: _placement(model.encoder) for model in loaded}
    connection.execute(
        "update imgsearch.ingest_run set status = %s, counts = %s, timings = %s, placement = %s, ended_at = now() "
        "where run_id = %s",
        [status, Jsonb(counts.as_dict()), Jsonb(_timings(watch)), Jsonb(placement), run_id],
    )


def record_backfill(
    connection: Connection, model: str, encoder: Encoder, counts: Counts, watch: Stopwatch, seconds: float, status: str
) -> None:
    """Record a finished backfill as a run, where ``stats`` and ``models compare`` look."""
    if not counts.done():
        return
    connection.execute(
        "insert into imgsearch.ingest_run (source, models, placement, started_at, ended_at, status, counts, "
        "timings) select %s, %s, %s, now() - make_interval(secs => %s), now(), %s, %s, %s "
        "where not row_security_active('imgsearch.image')",  # it is of no collection, and so of nobody's
        [BACKFILL, [model], Jsonb({model: _placement(encoder)}), seconds, status, Jsonb(counts.as_dict()),
         Jsonb(_timings(watch))],
    )  # fmt: skip


def _placement(encoder: Encoder) -> Mapping[str, Any]:
    return {"device": encoder.device, "dtype": encoder.dtype, "runtime": encoder.runtime}


def _timings(watch: Stopwatch) -> dict[str, Any]:
    return {name: asdict(stage) for name, stage in watch.stages.items()}
