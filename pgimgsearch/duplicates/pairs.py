"""Stored pairs: how far they are complete, what was compared, and the pairs themselves."""

from contextlib import AbstractContextManager

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.retry import retry_on_deadlock


def can_store_pairs(connection: Connection) -> bool:
    """Whether this role may write pairs, and sees all images; otherwise they are found anew each time."""
    row = connection.execute(
        "select has_table_privilege('imgsearch.duplicate_pair', 'insert') "
        "and not row_security_active('imgsearch.image')"
    ).fetchone()
    return row == (True,)


def begin_scan(connection: Connection, model: StoredModel, threshold: float) -> float:
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


def scanned_threshold(connection: Connection, model: StoredModel) -> float | None:
    """The threshold down to which pairs are remembered; None before the first scan."""
    row = connection.execute(
        "select threshold from imgsearch.duplicate_scan where model_id = %s", [model.model_id]
    ).fetchone()
    return None if row is None else float(row[0])


def count_pairs(connection: Connection, model: StoredModel) -> int:
    """How many pairs of a model are remembered."""
    row = connection.execute(
        "select count(*) from imgsearch.duplicate_pair where model_id = %s", [model.model_id]
    ).fetchone()
    assert row is not None
    return int(row[0])


def most_pairs(connection: Connection) -> int:
    """Of how many of its nearest contents the pairs of a content are remembered."""
    row = connection.execute("select imgsearch._most_pairs()").fetchone()
    assert row is not None
    return int(row[0])


def count_crowded(connection: Connection, model: StoredModel, most: int) -> int:
    """How many contents have at least so many pairs."""
    row = connection.execute(
        "select count(*) from (select from imgsearch.duplicate_pair p "
        "cross join lateral (values (p.content_a), (p.content_b)) c (id) where p.model_id = %s group by c.id "
        "having count(*) >= %s) crowded",
        [model.model_id, most],
    ).fetchone()
    assert row is not None
    return int(row[0])


def equal_to_earlier(connection: Connection, model: StoredModel) -> list[int]:
    """The contents with a vector whose pixels are those of an earlier one with a vector."""
    row = connection.execute(
        "select imgsearch._equal_to_earlier(m) from imgsearch.model m where m.model_id = %s", [model.model_id]
    ).fetchone()
    assert row is not None
    return list(row[0])


def delete_pairs(connection: Connection, model: StoredModel) -> None:
    """Forget the pairs of a model and what was compared; verdicts stay."""
    connection.execute("delete from imgsearch.duplicate_scan where model_id = %s", [model.model_id])


@retry_on_deadlock
def forget_scan(connection: Connection, model: StoredModel, before: float | None, compared: list[int]) -> None:
    """Forget what a scan of ``compared`` remembered, and go back to the threshold before; earlier pairs stay."""
    if before is None:
        return delete_pairs(connection, model)
    with connection.transaction():
        connection.execute(
            "delete from imgsearch.duplicate_pair p using imgsearch.duplicate_scan s "
            "where p.model_id = %(model)s and s.model_id = p.model_id and case when s.threshold < %(before)s "
            "then p.similarity < %(before)s "
            "else p.content_a = any(%(compared)s) or p.content_b = any(%(compared)s) end",
            {"before": before, "model": model.model_id, "compared": compared},
        )
        connection.execute(
            "delete from imgsearch.duplicate_scanned where model_id = %s and content_id = any(%s)",
            [model.model_id, compared],
        )
        connection.execute(
            "update imgsearch.duplicate_scan set threshold = %s where model_id = %s", [before, model.model_id]
        )
    return None


@retry_on_deadlock
def scan(connection: Connection, model: StoredModel, cut: float, contents: list[int]) -> int:
    """Compare contents with all others by the index, and remember the pairs. Returns how many are new."""
    row = connection.execute(
        "select imgsearch._scan(m, %s, %s) from imgsearch.model m where m.model_id = %s",
        [cut, contents, model.model_id],
    ).fetchone()
    assert row is not None
    return int(row[0])


@retry_on_deadlock
def store_pairs(
    connection: Connection, model: StoredModel, scanned: list[int], ones: list[int], others: list[int],
    similarities: list[float],
) -> int:  # fmt: skip
    """Remember pairs, and that ``scanned`` were compared with all others. Returns how many are new."""
    row = connection.execute(
        "select imgsearch._store_pairs(m, %s, %s::bigint[], %s::bigint[], %s::float8[]) from imgsearch.model m "
        "where m.model_id = %s",
        [scanned, ones, others, similarities, model.model_id],
    ).fetchone()
    assert row is not None
    return int(row[0])


def exclusive_scan(connection: Connection, model: StoredModel) -> AbstractContextManager[None]:
    """One scan of a model at a time; raises BusyError where another session is running one."""
    busy = f"another scan for duplicates with {model.name} is running"
    return locks.exclusive(connection, locks.DUPLICATES, model.model_id, busy)
