"""The thresholds of a model, and what they were measured on."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel

GROWN = 2


@dataclass(frozen=True, slots=True)
class Calibration:
    """A row of imgsearch.calibration; ``collection`` is None for all images, ``fits`` whether it is of those asked for.

    One that was measured by the way fits until there are more than ``GROWN`` times as many images.
    """

    near: float
    similar: float | None
    precision: float
    copies: float
    images: int
    measured: dict[str, Any]
    calibrated_at: datetime
    collection: str | None
    fits: bool


def with_thresholds(connection: Connection, model: StoredModel, collection: str | None) -> StoredModel:
    """The model with the thresholds that were measured on a collection (None: on all), where they were."""
    row = connection.execute(
        'select t.near, t."similar" from imgsearch.model m, imgsearch._with_thresholds(m, %s) t where m.model_id = %s',
        [collection, model.model_id],
    ).fetchone()
    return model if row is None else replace(model, near=row[0], similar=row[1])


def calibration_of(connection: Connection, model: StoredModel, collection: str | None) -> Calibration | None:
    """What the thresholds for a collection (None: for all) were measured on; None where that is not known."""
    query = (
        'select c.near, c."similar", c.precision, c.copies, c.images, c.measured, c.calibrated_at, '
        "l.name as collection, c.collection_id is not distinct from a.asked and (c.is_default or c.images * %s >= ("
        "select count(*) from imgsearch.image i where a.asked is null or i.collection_id = a.asked)) as fits "
        "from (select imgsearch._calibrated_collection(%s) as asked) a, imgsearch.calibration c "
        "left join imgsearch.collection l on l.collection_id = c.collection_id "
        "where c.model_id = %s and (c.is_default or c.collection_id is not distinct from a.asked) "
        "order by c.collection_id is not distinct from a.asked desc limit 1"
    )
    return (
        connection.cursor(row_factory=class_row(Calibration))
        .execute(query, [GROWN, collection, model.model_id])
        .fetchone()
    )


def store_calibration(
    connection: Connection, model: StoredModel, near: float, similar: float | None, precision: float, copies: float,
    images: int, measured: dict[str, Any], *, collection: str | None, default: bool,
) -> None:  # fmt: skip
    """Keep the thresholds for a collection (None: for all), and what they were measured on.

    ``default`` makes them the model's own, for collections that have none.
    """
    with connection.transaction():
        if default:
            connection.execute(
                'update imgsearch.model set near = %s, "similar" = %s where model_id = %s',
                [near, similar, model.model_id],
            )
            connection.execute(
                "update imgsearch.calibration set is_default = false where model_id = %s and is_default",
                [model.model_id],
            )
        connection.execute(
            "insert into imgsearch.calibration as c (model_id, collection_id, is_default, near, "
            '"similar", precision, copies, images, measured) '
            "values (%s, imgsearch._calibrated_collection(%s), %s, %s, %s, %s, %s, %s, %s) "
            "on conflict (model_id, collection_id) do update set is_default = c.is_default or excluded.is_default, "
            'near = excluded.near, "similar" = excluded."similar", precision = excluded.precision, '
            "copies = excluded.copies, images = excluded.images, measured = excluded.measured, calibrated_at = now()",
            [model.model_id, collection, default, near, similar, precision, copies, images, Jsonb(measured)],
        )
