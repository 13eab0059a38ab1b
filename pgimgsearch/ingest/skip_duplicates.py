"""Reject new duplicates at ingest: images of which a copy is stored, or came earlier in the run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.models import StoredModel, list_aliases
from pgimgsearch.database.reconnect import Session
from pgimgsearch.database.thresholds import with_thresholds
from pgimgsearch.embeddings.binary_copy import literal
from pgimgsearch.embeddings.read_vectors import read_vectors
from pgimgsearch.embeddings.similarity import similarity, unit_rows
from pgimgsearch.errors import ModelError
from pgimgsearch.ingest.item import Item

Copy = tuple[float, int | str]  # similarity, and what it is a copy of: a stored content_id, or a path
NOTHING: Copy = (-1.0, "")
NEAREST = """
select n.similarity, n.path from unnest(%s::text[]) with ordinality as v (vector, place)
left join lateral imgsearch.{function}(v.vector::{type}, k => 1, model => %s) n on true order by v.place
"""


class DuplicateFilter:
    """Rejects by one of a run's models: that of the alias duplicates, else the first.

    It asks the index where there is one; without, as in a first load, it holds all vectors in half precision.
    """

    def __init__(self, session: Session, models: Sequence[StoredModel], collection: str) -> None:
        self.session = session
        chosen = list_aliases(session.connection).get("duplicates")
        self.position = next((n for n, model in enumerate(models) if model.name == chosen), 0)
        self.model = with_thresholds(session.connection, models[self.position], collection)
        if self.model.near is None:
            raise ModelError(
                f"model {self.model.name} has no threshold for duplicates",
                hint=f"measure one: pgimgsearch models calibrate {self.model.name}",
            )
        self.near = self.model.near
        self.matrix = None if self.model.index_method != "none" else VectorMatrix(session.connection, self.model)

    def check(self, items: Sequence[Item]) -> None:
        """Reject copies, in order; an image that replaces a stored one is never rejected."""
        new = [item for item in items if item.failure is None and not item.replaces]
        stored = self.session.run(self._identical, new)
        accepted: dict[bytes, str] = {}
        for item in new:
            pixels = (item.image.pixel_hash if item.image else None) or b""
            copy = stored.get(item.sha256) or stored.get(pixels) or accepted.get(pixels)
            if item.twin is not None:
                copy = item.twin.file.path
            if copy is not None:
                item.rejected = f"identical to {copy}"
            elif pixels:
                accepted[pixels] = item.file.path
        self._reject_near([item for item in new if item.rejected is None and self.position in item.vectors])
        for item in items:
            if item.replaces and item.twin is not None and item.twin.rejected is not None:
                # no other item brings its content
                item.image, item.vectors = item.twin.image, dict(item.twin.vectors)

    def _reject_near(self, items: Sequence[Item]) -> None:
        if not items:
            return
        rows = unit_rows(np.stack([item.vectors[self.position] for item in items]), self.model.storage)
        stored = self.session.run(self._nearest, rows) if self.matrix is None else self.matrix.nearest(rows)
        among = similarity(rows @ rows.T, self.model.storage)
        passed: list[int] = []
        for number, item in enumerate(items):
            nearest = max([stored[number], *((float(among[number, n]), items[n].file.path) for n in passed)],
                          key=lambda copy: copy[0])  # fmt: skip
            if nearest[0] >= self.near:
                item.rejected = f"near copy of {self.session.run(self._path, nearest[1])} (similarity {nearest[0]:.3f})"
            else:
                passed.append(number)
        if self.matrix is not None:
            self.matrix.add(rows[passed], [items[number].file.path for number in passed])

    def _identical(self, items: Sequence[Item]) -> dict[bytes, str]:
        """Hash of bytes or pixels -> the path of a stored image that has it."""
        digests = [item.sha256 for item in items] + [
            item.image.pixel_hash for item in items if item.image and item.image.pixel_hash
        ]
        rows = self.session.connection.execute(
            "select d, f.path from unnest(%s::bytea[]) d cross join lateral (select i.path from ("
            "  select c.content_id from imgsearch.content c where c.sha256 = d "
            "  union all select c.content_id from imgsearch.content c where c.identity = d) c "
            "join imgsearch.image i on i.content_id = c.content_id limit 1) f",
            [digests],
        ).fetchall()
        return dict(rows)

    def _nearest(self, rows: NDArray[np.float32]) -> list[Copy]:
        bits = self.model.storage == "bit"
        vectors: NDArray[Any] = (rows > 0).astype(np.uint8) if bits else rows
        query = sql.SQL(NEAREST).format(
            function=sql.Identifier("similar_to_bits" if bits else "similar_to"),
            type=sql.SQL("bit varying" if bits else f"{vector_schema(self.session.connection)}.vector"),
        )
        texts = [literal(vector, self.model.storage) for vector in vectors]
        found = self.session.connection.execute(query, [texts, self.model.name]).fetchall()
        return [row if row[0] is not None else NOTHING for row in found]

    def _path(self, name: int | str) -> str:
        if isinstance(name, str):
            return name
        row = self.session.connection.execute(
            "select path from imgsearch.image where content_id = %s limit 1", [name]
        ).fetchone()
        return row[0] if row else "an image that was removed"


class VectorMatrix:
    """All vectors of a model, and those that passed since, in memory."""

    def __init__(self, connection: Connection, model: StoredModel) -> None:
        self.storage = model.storage
        self.blocks: list[tuple[NDArray[np.float16], Sequence[int | str]]] = []
        shown = np.array(connection.execute("select distinct content_id from imgsearch.image").fetchall(), np.int64)
        for ids, vectors in read_vectors(connection, model):
            here = np.isin(ids, shown)
            self.add(unit_rows(vectors[here], model.storage), ids[here].tolist())

    def add(self, rows: NDArray[np.float32], names: Sequence[int | str]) -> None:
        if len(rows):
            self.blocks.append((rows.astype(np.float16), names))

    def nearest(self, rows: NDArray[np.float32]) -> list[Copy]:
        best = [NOTHING] * len(rows)
        for block, names in self.blocks:
            similarities = similarity(rows @ block.astype(np.float32).T, self.storage)
            places = similarities.argmax(axis=1)
            found = [(float(similarities[row, place]), names[place]) for row, place in enumerate(places.tolist())]
            best = [max(pair, key=lambda copy: copy[0]) for pair in zip(best, found, strict=True)]
        return best
