"""The cache of embedded texts."""

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.privileges import can_write_texts


def missing_texts(connection: Connection, model: StoredModel, texts: Sequence[str], template: str = "{}") -> list[str]:
    """Those texts whose vectors are not cached, each once; the others count as used just now, where we may say so."""
    rows = connection.execute(
        "select q from imgsearch._missing_texts(%s, %s::text[], %s, %s) q",
        [model.model_id, list(texts), template, can_write_texts(connection)],
    ).fetchall()
    return [row[0] for row in rows]


def cache_texts(
    connection: Connection, model: StoredModel, texts: Sequence[str], vectors: Any, template: str = "{}"
) -> None:
    """Keep the vectors of texts in a template; ``vectors`` is (n, dim) float32, by the weights of its fingerprint."""
    connection.execute(
        sql.SQL("select imgsearch._cache_texts(%s, %s, "
                "%s::text[], %s::text[]::{}.vector[], %s)").format(sql.SQL(vector_schema(connection))),
        [model.name, model.fingerprint, list(texts), [str(vector.tolist()) for vector in vectors], template],
    )  # fmt: skip
