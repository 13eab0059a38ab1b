"""Advisory locks: one session at a time at what must not be done twice. Nobody waits for one inside of Postgres.

A session that waited there would hold a snapshot, and an index that is built concurrently waits for that.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from psycopg import errors as pg
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import BusyError

INDEX = "index"  # of a model that is built, or whose table is laid out anew
FILL = "fill"  # of a model that is filled in the background
ASIDE = "aside"  # of a model, to put another table in its place; shared by those who write beside it


@contextmanager
def alone(connection: Connection, what: str, key: int, busy: str, *, seconds: float = 0) -> Iterator[None]:
    """Hold the lock of ``what`` and ``key`` for a block; raises BusyError where another has it for so many seconds."""
    if not take(connection, what, key, seconds=seconds):
        raise BusyError(busy, hint="wait for it, or stop it with Ctrl-C")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("select pg_advisory_unlock(hashtext(%s), %s)", [f"pgimgsearch.{what}", key])


def take(connection: Connection, what: str, key: int, *, seconds: float = 0) -> bool:
    """Take a lock until the session ends; False where another session has it for so many seconds.

    The server takes a moment to clear away a session that has ended, and with it what that held. From then on
    statements may take long, and the server looks whether we are still there: what a killed process has begun would go
    on for hours.
    """
    tries = Retrying(
        retry=retry_if_result(lambda row: row != (True,)), stop=stop_after_delay(seconds), wait=wait_fixed(0.2),
        retry_error_callback=lambda _: None,
    )  # fmt: skip
    statement = "select pg_try_advisory_lock(hashtext(%s), %s)"
    row = tries(lambda: connection.execute(statement, [f"pgimgsearch.{what}", key]).fetchone())
    if row is not None:
        connection.execute("set statement_timeout = 0")  # a hosted server's may be minutes
        with suppress(pg.InvalidParameterValue):  # a server that is no Linux cannot look
            connection.execute("set client_connection_check_interval = '2s'")
    return row is not None


def share(connection: Connection, what: str, key: int) -> bool:
    """Share a lock until the session ends; False where another session has it alone."""
    row = connection.execute(
        "select pg_try_advisory_lock_shared(hashtext(%s), %s)", [f"pgimgsearch.{what}", key]
    ).fetchone()
    return row == (True,)


def taken(connection: Connection, what: str, key: int) -> bool:
    """Whether another session has a lock."""
    row = connection.execute(
        "select exists (select from pg_locks l where l.locktype = 'advisory' and l.granted and l.database = "
        "(select oid from pg_database where datname = current_database()) and l.objsubid = 2 and l.pid <> "
        "pg_backend_pid() and l.classid::bigint = (hashtext(%s)::bigint & 4294967295) and l.objid::bigint = %s)",
        [f"pgimgsearch.{what}", key],
    ).fetchone()
    return row == (True,)
