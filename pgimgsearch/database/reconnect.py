"""A session that reconnects: a lost connection is opened and prepared again, and the work repeated."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import psycopg
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
)

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.embedded import restart_if_dead
from pgimgsearch.errors import BusyError, DatabaseError, InterruptedRun
from pgimgsearch.reporter import SILENT, Reporter

PATIENCE = 180.0  # seconds: a managed database takes a minute or two to move to its standby
REPEATS = 5  # of one piece of work; one that ends the server each time is not the server's fault

P = ParamSpec("P")
R = TypeVar("R")


class Session:
    """The connection of a long run. Without ``url``, a lost one stays lost.

    ``stopped`` ends the wait for a lost server; ``reporter`` says when one was lost.
    """

    def __init__(
        self, connection: Connection, url: str | None = None, stopped: threading.Event | None = None,
        reporter: Reporter = SILENT,
    ) -> None:  # fmt: skip
        self.connection = connection
        self.losses = 0
        self._url, self._stopped, self._reporter = url, stopped or threading.Event(), reporter
        self._steps: list[Callable[[Connection], None]] = []
        self._opened = ExitStack()

    def prepare(self, step: Callable[[Connection], None]) -> None:
        """Prepare a connection before it is used, now and after each loss: locks, temporary tables."""
        self.run(lambda: step(self.connection))
        self._steps.append(step)

    def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do work over ``connection`` that may be repeated: a query, or a transaction that is harmless when repeated.

        Raises DatabaseError where the server does not come back in time.
        """
        for _ in range(REPEATS):
            try:
                return work(*args, **kwargs)
            except psycopg.OperationalError as error:
                if self._url is None or not self.connection.closed:
                    raise
                self._reopen(self._url, error)
        return work(*args, **kwargs)

    def close(self) -> None:
        """Close what was opened here."""
        self._opened.close()

    def _reopen(self, url: str, lost: psycopg.OperationalError) -> None:
        self.losses += 1
        self._reporter.say(
            f"the connection to the database was lost ({_first_line(lost)}); trying again for {PATIENCE:g} s"
        )
        tries = Retrying(
            retry=retry_if_exception_type((DatabaseError, psycopg.OperationalError)),
            stop=stop_after_delay(PATIENCE) | stop_when_event_set(self._stopped),
            sleep=sleep_using_event(self._stopped), wait=wait_exponential(multiplier=0.25, max=10),
        )  # fmt: skip
        try:
            self.connection = tries(self._open, url)
        except RetryError as error:
            if self._stopped.is_set():
                raise InterruptedRun(hint="run the same command again to continue") from lost
            last = error.last_attempt.exception() or lost
            if isinstance(last, BusyError):  # another run took what this one held
                raise last from lost
            raise DatabaseError(
                "the connection to the database was lost and could not be opened again: "
                f"{_first_line(lost)}; {_first_line(last)}",
                hint="what was committed is kept; when the server is back, run the same command again to continue",
            ) from last

    def _open(self, url: str) -> Connection:
        """A connection that is ready; the lock of one that the server has not missed yet makes it wait."""
        self._opened.close()
        restart_if_dead(url)
        with ExitStack() as stack:
            connection = stack.enter_context(connect(url))
            for step in self._steps:
                step(connection)
            self._opened = stack.pop_all()
        return connection


@contextmanager
def session(url: str, stopped: threading.Event | None = None, reporter: Reporter = SILENT) -> Iterator[Session]:
    """Open a session, which closes its connections at the end."""
    restart_if_dead(url)
    with connect(url) as connection:
        opened = Session(connection, url, stopped, reporter)
        try:
            yield opened
        finally:
            opened.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
