"""Report how far the server is with an index."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.session_settings import apply_settings
from pgimgsearch.reporter import SILENT, Reporter


@contextmanager
def watch_progress(connection: Connection, reporter: Reporter) -> Iterator[None]:
    """Watch pg_stat_progress_create_index from a second connection while the block runs."""
    if reporter is SILENT:
        yield
        return
    done = threading.Event()
    row = connection.execute("select pg_backend_pid()").fetchone()
    pid = row[0] if row else None

    def watch() -> None:
        with (
            suppress(psycopg.Error),  # the build itself says why it fails
            psycopg.connect(connection.info.dsn, password=connection.info.password, autocommit=True) as watcher,
        ):
            apply_settings(watcher)
            while not done.wait(0.5):
                row = watcher.execute(
                    # a graph counts rows done but not those to come; of blocks both are known
                    "select case when blocks_total > 0 then blocks_done else tuples_done end, "
                    "greatest(blocks_total, tuples_total) from pg_stat_progress_create_index where pid = %s", [pid],
                ).fetchone()  # fmt: skip
                if row:
                    reporter.progress(*row)

    thread = threading.Thread(target=watch, name="index-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
