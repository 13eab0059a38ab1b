"""What a model has of the contents that images show."""

from dataclasses import dataclass

from psycopg.rows import class_row

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel


@dataclass(frozen=True, slots=True)
class Coverage:
    """Contents that images show, those with a vector, those in which the model finds too little, and the rest."""

    contents: int
    embedded: int
    skipped: int
    missing: int


def count(connection: Connection, model: StoredModel) -> Coverage:
    """Counted, not estimated."""
    found = connection.cursor(row_factory=class_row(Coverage)).execute(
        "select k.* from imgsearch.model m, imgsearch._covered(m) k where m.model_id = %s", [model.model_id]
    )
    row = found.fetchone()
    assert row is not None
    return row
