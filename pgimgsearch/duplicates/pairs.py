"""What a database remembers of pairs: how far they are known, what was compared, and the pairs themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import errors as pg
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.errors import DatabaseError

# What another session removes or writes meanwhile is no reason to give up.
patient = retry(
    retry=retry_if_exception_type((pg.DeadlockDetected, pg.SerializationFailure, pg.ForeignKeyViolation)),
    stop=stop_after_attempt(5), wait=wait_random(0.05, 0.5), reraise=True,
)  # fmt: skip


def may_remember(connection: Connection) -> bool:
    """Whether this role may write pairs, and sees all images; otherwise they are found anew each time."""
    row = connection.execute(
        "select has_table_privilege('imgsearch.duplicate_pair', 'insert') "
        "and not row_security_active('imgsearch.image')"
    ).fetchone()
    return row == (True,)


def begin(connection: Connection, model: StoredModel, threshold: float) -> float:
    """Begin a scan or go on with it; returns the threshold down to which pairs are remembered."""
    row = connection.execute(
        "select imgsearch._begin_scan(m, %s) from imgsearch.model m where m.model_id = %s", [threshold, model.model_id]
    ).fetchone()
    assert row is not None
    return float(row[0])


def unscanned(connection: Connection, model: StoredModel, cut: float) -> list[int]:
    """The contents that no scan down to this threshold has compared yet, in order."""
    row = connection.execute(
        "select imgsearch._unscanned(m, %s) from imgsearch.model m where m.model_id = %s", [cut, model.model_id]
    ).fetchone()
    assert row is not None
    return list(row[0])


def count_pairs(connection: Connection, model: StoredModel) -> int:
    """How many pairs of a model are remembered."""
    row = connection.execute(
        "select count(*) from imgsearch.duplicate_pair where model_id = %s", [model.model_id]
    ).fetchone()
    assert row is not None
    return int(row[0])


def forget(connection: Connection, model: StoredModel) -> None:
    """Forget the pairs of a model and what was compared; verdicts stay."""
    connection.execute("delete from imgsearch.duplicate_scan where model_id = %s", [model.model_id])


@patient
def scan(connection: Connection, model: StoredModel, cut: float, contents: list[int]) -> int:
    """Compare contents with all others by the index, and remember the pairs. Returns how many are new."""
    row = connection.execute(
        "select imgsearch._scan(m, %s, %s) from imgsearch.model m where m.model_id = %s",
        [cut, contents, model.model_id],
    ).fetchone()
    assert row is not None
    return int(row[0])


@patient
def keep(
    connection: Connection, model: StoredModel, scanned: list[int], ones: list[int], others: list[int],
    similarities: list[float],
) -> int:  # fmt: skip
    """Remember pairs, and that ``scanned`` were compared with all others. Returns how many are new."""
    row = connection.execute(
        "select imgsearch._remember(m, %s, %s::bigint[], %s::bigint[], %s::float8[]) from imgsearch.model m "
        "where m.model_id = %s",
        [scanned, ones, others, similarities, model.model_id],
    ).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def locked(connection: Connection, model: StoredModel) -> Iterator[None]:
    """One scan of a model at a time."""
    key = ["pgimgsearch.duplicates", model.model_id]
    if connection.execute("select pg_try_advisory_lock(hashtext(%s), %s)", key).fetchone() != (True,):
        raise DatabaseError(
            f"another scan for duplicates with {model.name} is running", hint="wait for it, or stop it with Ctrl-C"
        )
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("select pg_advisory_unlock(hashtext(%s), %s)", key)
