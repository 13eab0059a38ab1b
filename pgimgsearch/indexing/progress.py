"""How far the server is with an index."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from pgimgsearch.database.connection import Connection

Progress = Callable[[str, int, int], None]  # phase, done, total


@contextmanager
def reported(connection: Connection, report: Progress | None) -> Iterator[None]:
    """Watch pg_stat_progress_create_index from a second connection while the block runs."""
    if report is None:
        yield
        return
    done = threading.Event()
    pid = connection.info.backend_pid

    def watch() -> None:
        with (
            suppress(psycopg.Error),  # the build says why it fails
            psycopg.connect(connection.info.dsn, password=connection.info.password, autocommit=True) as watcher,
        ):
            while not done.wait(0.5):
                row = watcher.execute(
                    # a graph counts the rows it has, but not those to come; both are known of blocks
                    "select phase, case when blocks_total > 0 then blocks_done else tuples_done end, "
                    "greatest(blocks_total, tuples_total) from pg_stat_progress_create_index where pid = %s", [pid],
                ).fetchone()  # fmt: skip
                if row:
                    report(*row)

    thread = threading.Thread(target=watch, name="index-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
