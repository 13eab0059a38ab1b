"""The books of a run in the database: one run a collection at a time, begun, counted and ended."""

from collections.abc import Sequence
from dataclasses import asdict

from psycopg.types.json import Jsonb

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.reconnect import Session
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import BusyError
from pgimgsearch.ingest.item import Counts
from pgimgsearch.ingest.stopwatch import Stopwatch

SECONDS_TO_LEAVE = 3.0  # until the server has cleared away the run before


def lock(session: Session, collection_id: int, name: str) -> None:
    """Hold a collection for this run; what a killed run left open is closed."""

    def take(connection: Connection) -> None:
        if not locks.take(connection, "ingest", collection_id, seconds=SECONDS_TO_LEAVE):
            raise BusyError(
                f"another ingest into collection {name} is running", hint="wait for it, or stop it with Ctrl-C"
            )

    session.prepare(take)
    session.connection.execute(
        "update imgsearch.ingest_run set status = 'interrupted' where status = 'running' and collection_id = %s",
        [collection_id],
    )


def begin(connection: Connection, collection_id: int, label: str, models: Sequence[LoadedModel]) -> int:
    """Open a run and return its run_id."""
    placement = {
        m.stored.name: {"device": m.encoder.device, "dtype": m.encoder.dtype, "runtime": m.encoder.runtime}
        for m in models
    }
    row = connection.execute(
        "insert into imgsearch.ingest_run (collection_id, source, models, placement) "
        "values (%s, %s, %s, %s) returning run_id",
        [collection_id, label, [m.stored.name for m in models], Jsonb(placement)],
    ).fetchone()
    assert row is not None
    return int(row[0])


def note(connection: Connection, run_id: int, counts: Counts) -> None:
    """Store how far a run is."""
    connection.execute(
        "update imgsearch.ingest_run set counts = %s where run_id = %s", [Jsonb(counts.as_dict()), run_id]
    )


def settle(session: Session, collection_id: int, run_id: int, shards: Sequence[str]) -> None:
    """Forget failures of whole shards that this run, which is complete, has read to their ends."""
    if shards:
        session.run(
            lambda: session.connection.execute(
                "delete from imgsearch.ingest_failure f using imgsearch.ingest_run r where r.run_id = %s "
                "and f.collection_id = %s and f.path = any(%s) and f.last_at < r.started_at",
                [run_id, collection_id, list(shards)],
            )
        )


def end(connection: Connection, run_id: int, status: str, counts: Counts, watch: Stopwatch) -> None:
    """Close a run with its counts and the times of its stages."""
    timings = {name: asdict(stage) for name, stage in watch.stages.items()}
    connection.execute(
        "update imgsearch.ingest_run set status = %s, counts = %s, timings = %s, ended_at = now() where run_id = %s",
        [status, Jsonb(counts.as_dict()), Jsonb(timings), run_id],
    )
