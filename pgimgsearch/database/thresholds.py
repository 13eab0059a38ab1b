"""The thresholds of a model, and what they were measured on."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel


@dataclass(frozen=True, slots=True)
class Calibration:
    """A row of imgsearch.calibration: what the thresholds of a model were measured on."""

    near: float
    similar: float
    precision: float
    copies: float
    images: int
    measured: dict[str, Any]
    calibrated_at: datetime


def calibration_of(connection: Connection, model: StoredModel) -> Calibration | None:
    """What a model's thresholds were measured on; none where they are defaults."""
    query = (
        'select near, "similar", precision, copies, images, measured, calibrated_at '
        "from imgsearch.calibration where model_id = %s"
    )
    return connection.cursor(row_factory=class_row(Calibration)).execute(query, [model.model_id]).fetchone()


def store_calibration(
    connection: Connection, model: StoredModel, near: float, similar: float, precision: float, copies: float,
    images: int, measured: dict[str, Any],
) -> None:  # fmt: skip
    """Give a model its thresholds, and keep what they were measured on."""
    with connection.transaction():
        connection.execute(
            'update imgsearch.model set near = %s, "similar" = %s where model_id = %s', [near, similar, model.model_id]
        )
        connection.execute(
            'insert into imgsearch.calibration as c (model_id, near, "similar", precision, copies, images, measured) '
            "values (%s, %s, %s, %s, %s, %s, %s) on conflict (model_id) do update set near = excluded.near, "
            '"similar" = excluded."similar", precision = excluded.precision, copies = excluded.copies, '
            "images = excluded.images, measured = excluded.measured, calibrated_at = now()",
            [model.model_id, near, similar, precision, copies, images, Jsonb(measured)],
        )
