"""Contents that no image shows any more."""

from collections.abc import Sequence

from psycopg import errors as pg

from pgimgsearch.database.connection import Connection

DELETE_ORPHANS = """
delete from imgsearch.content c where c.content_id = any(%s)
and not exists (select from imgsearch.image i where i.content_id = c.content_id)
"""


def orphans(connection: Connection) -> list[int]:
    """Contents that no image shows."""
    rows = connection.execute(
        "select content_id from imgsearch.content c "
        "where not exists (select from imgsearch.image i where i.content_id = c.content_id)"
    ).fetchall()
    return [row[0] for row in rows]


def delete_orphans(connection: Connection, contents: Sequence[int]) -> None:
    """Delete those of some contents that no image shows.

    A content that another session has started to use, or that row-level security hides from this role, stays.
    """
    try:
        connection.execute(DELETE_ORPHANS, [list(contents)])
    except pg.ForeignKeyViolation:
        if len(contents) > 1:  # one of them is in use, so each by itself
            for content in contents:
                delete_orphans(connection, [content])
