"""Contents that no image shows any more."""

from collections.abc import Sequence

from pgimgsearch.database.connection import Connection


def orphans(connection: Connection) -> list[int]:
    """Contents that no image shows."""
    rows = connection.execute(
        "select content_id from imgsearch.content c "
        "where not exists (select from imgsearch.image i where i.content_id = c.content_id)"
    ).fetchall()
    return [row[0] for row in rows]


def delete_orphans(connection: Connection, contents: Sequence[int]) -> None:
    """Delete those of some contents that no image shows; one that another session has started to use stays."""
    connection.execute("select imgsearch._sweep(%s)", [list(contents)])
