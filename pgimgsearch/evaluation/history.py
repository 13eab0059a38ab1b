"""Evaluations as they are kept, so that they can be compared over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from pgimgsearch.database.connection import Connection


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A row of imgsearch.evaluation_run, as far as a later one is compared with it."""

    evaluation_id: int
    evaluated_at: datetime
    fingerprint: str | None
    figures: Mapping[str, Mapping[str, float]]


def can_store(connection: Connection) -> bool:
    """Whether this role may keep evaluations; a reader may not."""
    row = connection.execute("select has_any_column_privilege('imgsearch.evaluation_run', 'insert')").fetchone()
    return row == (True,)


def store_run(connection: Connection, row: Mapping[str, Any]) -> int:
    """Keep an evaluation of one model. Returns its id."""
    json = {"options", "figures", "numbers", "notes"}
    values = {key: Jsonb(value) if key in json else value for key, value in row.items()}
    found = connection.execute(
        "insert into imgsearch.evaluation_run (protocol, data, model, fingerprint, options, questions, figures, "
        "numbers, notes, images_per_second, query_ms) values (%(protocol)s, %(data)s, %(model)s, %(fingerprint)s, "
        "%(options)s, %(questions)s, %(figures)s, %(numbers)s, %(notes)s, %(images_per_second)s, %(query_ms)s) "
        "returning evaluation_id",
        values,
    ).fetchone()
    assert found is not None
    return int(found[0])


def previous_run(connection: Connection, row: Mapping[str, Any]) -> StoredRun | None:
    """The last evaluation that asked a model the same: protocol, images, options and as many questions."""
    return (
        connection.cursor(row_factory=class_row(StoredRun))
        .execute(
            "select evaluation_id, evaluated_at, fingerprint, figures from imgsearch.evaluation_run "
            "where (protocol, data, model, options, questions) = (%s, %s, %s, %s, %s) "
            "order by evaluation_id desc limit 1",
            [row["protocol"], row["data"], row["model"], Jsonb(row["options"]), row["questions"]],
        )
        .fetchone()
    )


def recent_runs(
    connection: Connection, protocol: str | None, models: Sequence[str], limit: int
) -> list[dict[str, Any]]:
    """The last evaluations, newest first: all, or of a protocol or models."""
    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute(
        "select * from imgsearch.evaluation_run where (%(protocol)s::text is null or protocol = %(protocol)s) "
        "and (%(models)s::text[] = '{}' or model = any(%(models)s)) order by evaluation_id desc limit %(limit)s",
        {"protocol": protocol, "models": list(models), "limit": limit},
    ).fetchall()
