"""Runs as they are shown."""

from typing import Any

from psycopg.rows import dict_row

from pgimgsearch.database.connection import Connection

RECENT = """
select r.run_id, r.source, r.models, r.started_at, r.ended_at, r.counts,
       case when r.run_id in (select imgsearch._stale_runs()) then 'interrupted' else r.status end as status
from imgsearch.ingest_run r order by r.run_id desc limit %s
"""


def recent_runs(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """The last runs, newest first."""
    return connection.cursor(row_factory=dict_row).execute(RECENT, [limit]).fetchall()
