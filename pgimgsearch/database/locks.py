"""Advisory locks: one session at a time does what must not be done twice. Nobody waits for one inside Postgres.

A session that waited there would hold a snapshot, and a concurrent index build waits for that.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from psycopg import errors as pg
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import BusyError, DatabaseError

INDEX = "index"  # of a model, to build it or to change its table
INGEST = "ingest"  # of a collection that a run writes to
FILL = "fill"  # of a model that is filled in the background
DUPLICATES = "duplicates"  # of a model whose pairs are scanned
TRASH = "trash"  # to move duplicates
SECONDS_TO_LEAVE = 3.0  # until the server has cleared away a session whose client was killed
SHADOW = "shadow"  # of a model, to swap its tables; shared by those who write to the shadow


@contextmanager
def exclusive(
    connection: Connection, what: str, key: int, busy: str, *, seconds: float = SECONDS_TO_LEAVE
) -> Iterator[None]:  # fmt: skip
    """Hold the lock of ``what`` and ``key`` for a block; raises BusyError where another session has it."""
    if not take(connection, what, key, seconds=seconds):
        raise BusyError(busy, hint="wait for it, or stop it with Ctrl-C")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("select pg_advisory_unlock(hashtext(%s), %s)", [f"pgimgsearch.{what}", key])


def take(connection: Connection, what: str, key: int, *, seconds: float = SECONDS_TO_LEAVE) -> bool:
    """Take a lock until the session ends; False where another session still has it after so many seconds.

    The server takes a moment to release what an ended session held. From then on the server checks that the client is
    still connected: what a killed process has started would run for hours.
    """
    is_ours = _tried(connection, "select pg_try_advisory_lock(hashtext(%s), %s)", what, key, seconds)
    if is_ours:
        with suppress(pg.InvalidParameterValue):  # only a server on Linux can check
            connection.execute("set client_connection_check_interval = '2s'")
    return is_ours


def share(connection: Connection, what: str, key: int) -> bool:
    """Share a lock until the session ends; False where another session holds it exclusively, also after a moment."""
    return _tried(connection, "select pg_try_advisory_lock_shared(hashtext(%s), %s)", what, key, SECONDS_TO_LEAVE)


def _tried(connection: Connection, statement: str, what: str, key: int, seconds: float) -> bool:
    tries = Retrying(
        retry=retry_if_result(lambda row: row != (True,)), stop=stop_after_delay(seconds), wait=wait_fixed(0.2),
        retry_error_callback=lambda _: None,
    )  # fmt: skip
    return tries(lambda: connection.execute(statement, [f"pgimgsearch.{what}", key]).fetchone()) is not None


def is_locked(connection: Connection, what: str, key: int) -> bool:
    """Whether another session has a lock."""
    return _is_held(connection, what, key, by_us=False)


def check_held(connection: Connection, what: str, key: int) -> None:
    """Raise DatabaseError where this session does not hold the lock that it took."""
    if not _is_held(connection, what, key, by_us=True):
        raise DatabaseError(
            "this session has lost the lock that it took: somebody released it, or a pooler in transaction mode gave "
            "us another session",
            hint="give a direct connection with --db, and run it again; nothing was written without the lock",
        )


def _is_held(connection: Connection, what: str, key: int, *, by_us: bool) -> bool:
    row = connection.execute(
        "select exists (select from pg_locks l where l.locktype = 'advisory' and l.granted and l.database = "
        "(select oid from pg_database where datname = current_database()) and l.objsubid = 2 and "
        "(l.pid = pg_backend_pid()) = %s and l.classid::bigint = (hashtext(%s)::bigint & 4294967295) and "
        "l.objid::bigint = %s)",
        [by_us, f"pgimgsearch.{what}", key],
    ).fetchone()
    return row == (True,)
