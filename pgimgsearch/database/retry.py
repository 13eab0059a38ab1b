"""Statements that are tried again: after a deadlock, and for locks that others hold for a moment."""

from psycopg import errors as pg
from psycopg import sql
from tenacity import (
    Retrying,
    retry,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from pgimgsearch.database.connection import Connection

# For a function that runs one transaction and can be repeated. What another session deletes meanwhile, a foreign key
# refuses, and the next attempt leaves out.
retry_on_deadlock = retry(
    retry=retry_if_exception_type((pg.DeadlockDetected, pg.SerializationFailure, pg.ForeignKeyViolation)),
    stop=stop_after_attempt(5),
    wait=wait_random(0.05, 0.5),
    reraise=True,
)


def with_lock_retries(connection: Connection, *statements: sql.Composed, seconds: float = 30) -> None:
    """Run a transaction that needs exclusive locks, in attempts so short that others hardly wait behind it.

    Raises LockNotAvailable where others hold a lock for all of ``seconds``.
    """
    attempts = Retrying(
        retry=retry_if_exception_type(pg.LockNotAvailable), wait=wait_exponential(multiplier=0.25, max=15),
        stop=stop_after_delay(seconds), reraise=True,
    )  # fmt: skip
    for attempt in attempts:
        with attempt, connection.transaction():
            connection.execute("set transaction isolation level read committed")  # to see what precedes its locks
            connection.execute("set local lock_timeout = '200ms'")
            for statement in statements:
                connection.execute(statement)
