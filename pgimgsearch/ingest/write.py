"""Into the database: a chunk is staged by binary COPY and upserted, in one transaction."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.embeddings.binary_copy import encode_rows
from pgimgsearch.errors import DatabaseError
from pgimgsearch.ingest import run_log as books
from pgimgsearch.ingest.item import Counts, Item

ORPHANS_AT_ONCE = 1000
COLUMNS = {
    "ordinal": "int4", "path": "text", "external_id": "text", "group_key": "text", "caption": "text",
    "metadata": "jsonb", "modified_at": "timestamptz", "sha256": "bytea", "pixel_sha256": "bytea", "bytes": "int8",
    "width": "int4", "height": "int4", "format": "text",
}  # fmt: skip

# In the order of their keys, so that two runs at once seldom lock the same rows crosswise; a deadlock is tried again.
# Temporary tables have no statistics; a limit in a lateral makes each row one look-up, however large the store.
ADD_CONTENTS = """
with added as (
    insert into imgsearch.content (sha256, pixel_sha256, bytes, width, height, format)
    select distinct on (sha256) sha256, pixel_sha256, bytes, width, height, format
    from incoming where pixel_sha256 is not null order by sha256
    on conflict (sha256) do nothing
    returning content_id, sha256)
insert into resolved (ordinal, content_id)
select n.ordinal, a.content_id from incoming n join added a using (sha256)
"""
RESOLVE_OTHERS = """
insert into resolved (ordinal, content_id)
select n.ordinal, c.content_id
from incoming n cross join lateral (
    select c.content_id from imgsearch.content c where c.sha256 = n.sha256 limit 1 for key share) c
where n.ordinal not in (select r.ordinal from resolved r)
"""
REPLACED_CONTENTS = """
select array_agg(distinct i.content_id)
from incoming n join resolved r using (ordinal)
cross join lateral (
    select i.content_id from imgsearch.image i where i.collection_id = %s and i.path = n.path limit 1) i
where i.content_id <> r.content_id
"""
UPSERT_IMAGES = """
insert into imgsearch.image as i
    (content_id, collection_id, path, external_id, modified_at, group_key, caption, metadata)
select distinct on (n.path) r.content_id, %s, n.path, n.external_id, n.modified_at, n.group_key, n.caption,
       coalesce(n.metadata, '{}')
from incoming n join resolved r using (ordinal)
order by n.path, n.ordinal desc
on conflict (collection_id, path) do update set
    content_id = excluded.content_id, modified_at = excluded.modified_at, updated_at = now(),
    external_id = coalesce(excluded.external_id, i.external_id), group_key = coalesce(excluded.group_key, i.group_key),
    caption = coalesce(excluded.caption, i.caption),
    metadata = case when excluded.metadata = '{}' then i.metadata else excluded.metadata end
"""
ADD_EMBEDDINGS = """
insert into {table} (content_id, embedding)
select r.content_id, v.embedding
from {staging} v join resolved r using (ordinal)
on conflict (content_id) do nothing
"""
DROP_ORPHANS = """
delete from imgsearch.content c where c.content_id = any(%s)
and not exists (select from imgsearch.image i where i.content_id = c.content_id)
"""
UPSERT_FAILURE = """
insert into imgsearch.ingest_failure as f
    (collection_id, path, model_id, kind, error_class, message, bytes, modified_at)
values (%s, %s, %s, %s, %s, %s, %s, %s)
on conflict (collection_id, path, model_id) do update set
    kind = excluded.kind, error_class = excluded.error_class, message = excluded.message, bytes = excluded.bytes,
    modified_at = excluded.modified_at, attempts = f.attempts + 1, last_at = now()
"""
DROP_SETTLED_FAILURES = """
delete from imgsearch.ingest_failure f
using unnest(%s::text[], %s::integer[]) as settled (path, model_id)
where f.collection_id = %s and f.path = settled.path and f.last_at < now()
and (f.model_id is null or f.model_id = settled.model_id)
"""

again_on_deadlock = retry(
    retry=retry_if_exception_type((pg.DeadlockDetected, pg.SerializationFailure)),
    stop=stop_after_attempt(5),
    wait=wait_random(0.05, 0.5),
    reraise=True,
)


class Writer:
    """Writes chunks over a session of its own, of the run ``run_id``; or of a part of one, whose counts others keep."""

    def __init__(self, session: Session, collection_id: int, run_id: int | None, models: Sequence[StoredModel]) -> None:
        self.session, self.collection_id, self.run_id = session, collection_id, run_id
        self.models = list(models)
        self.replaced: set[int] = set()
        self.staging = [sql.Identifier(f"incoming_{position}") for position in range(len(self.models))]
        session.prepare(self._create_staging)

    @property
    def connection(self) -> Connection:
        """The session's at this moment."""
        return self.session.connection

    def write(self, items: Sequence[Item], counts: Counts) -> None:
        """Write finished items with the counts that will be true then: all of it, or nothing."""
        self.session.run(self._write, items, counts)

    def _create_staging(self, connection: Connection) -> None:
        types = vector_schema(connection)
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        connection.execute("create temporary table resolved (ordinal int4, content_id int8) on commit delete rows")
        connection.execute(f"create temporary table incoming ({columns}) on commit delete rows")
        for staging, model in zip(self.staging, self.models, strict=True):
            kind = f"{types}.{model.storage}" if model.storage != "bit" else "bit"
            connection.execute(
                sql.SQL("create temporary table {} (ordinal int4, embedding {}({})) on commit delete rows").format(
                    staging, sql.SQL(kind), sql.Literal(model.dim)
                )
            )

    @again_on_deadlock
    def _write(self, items: Sequence[Item], counts: Counts) -> None:
        good = [item for item in items if item.failure is None and item.refused is None]
        with self.connection.transaction():
            if good:
                self._stage(good)
                self._upsert(len(good), replacing=any(item.replaces for item in good))
            self._record_failures(items)
            if self.run_id is not None:
                books.note(self.connection, self.run_id, counts)

    def _stage(self, items: Sequence[Item]) -> None:
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        with self.connection.cursor() as cursor:
            with cursor.copy(sql.SQL("copy incoming ({}) from stdin (format binary)").format(names)) as copy:
                copy.set_types(list(COLUMNS.values()))
                for ordinal, item in enumerate(items):
                    copy.write_row(_row(ordinal, item))
            for position, staging in enumerate(self.staging):
                having = [(o, item.vectors[position]) for o, item in enumerate(items) if position in item.vectors]
                if having:
                    ordinals, vectors = zip(*having, strict=True)
                    statement = sql.SQL("copy {} (ordinal, embedding) from stdin (format binary)").format(staging)
                    with cursor.copy(statement) as copy:
                        copy.write(
                            encode_rows(np.array(ordinals, np.int32), np.stack(vectors), self.models[position].dim)
                        )

    def _upsert(self, count: int, *, replacing: bool) -> None:
        execute = self.connection.execute
        resolved = execute(ADD_CONTENTS).rowcount
        if resolved < count:
            resolved += execute(RESOLVE_OTHERS).rowcount
        if resolved != count:
            raise DatabaseError("another session removed contents that this run relied on", hint="run it again")
        replaced = execute(REPLACED_CONTENTS, [self.collection_id]).fetchone() if replacing else None
        execute(UPSERT_IMAGES, [self.collection_id])
        for staging, model in zip(self.staging, self.models, strict=True):
            execute(sql.SQL(ADD_EMBEDDINGS).format(table=model.table, staging=staging))
        if replaced and replaced[0]:
            self.replaced.update(replaced[0])

    def _record_failures(self, items: Sequence[Item]) -> None:
        troubled = [item for item in items if item.failure is not None or item.refused is not None or item.reasons]
        rows = [row for item in troubled for row in self._failures(item)]
        if rows:
            with self.connection.cursor() as cursor:
                cursor.executemany(UPSERT_FAILURE, rows)
        settled = [(item.file.path, self.models[model].model_id) for item in items for model in item.wanted]
        self.connection.execute(
            DROP_SETTLED_FAILURES,
            [[path for path, _ in settled], [model for _, model in settled], self.collection_id],
        )

    def _failures(self, item: Item) -> list[list[Any]]:
        def row(model_id: int | None, kind: str, name: str, message: str) -> list[Any]:
            size = item.file.size if item.file.size is not None else item.size
            return [self.collection_id, item.file.path, model_id, kind, name, message.replace("\0", "\\0"), size,
                    item.file.modified_at]  # fmt: skip

        if item.failure is not None:
            return [row(None, "failed", *item.failure)]
        if item.refused is not None:
            return [row(None, "skipped", "DuplicatePicture", item.refused)]
        return [
            row(self.models[position].model_id, "skipped", "SkippedPicture", why)
            for position, why in item.reasons.items()
        ]


def orphans(session: Session) -> list[int]:
    """Contents that no image shows."""
    rows = session.connection.execute(
        "select content_id from imgsearch.content c "
        "where not exists (select from imgsearch.image i where i.content_id = c.content_id)"
    ).fetchall()
    return [row[0] for row in rows]


def drop_orphans(session: Session, contents: Iterable[int]) -> None:
    """Drop contents that no image shows any more, once nothing of the run can need them.

    What another session took up meanwhile, or hides from us by row-level security, stays.
    """

    def drop(some: list[int]) -> None:
        session.connection.execute(DROP_ORPHANS, [some])

    ids = list(contents)
    for start in range(0, len(ids), ORPHANS_AT_ONCE):
        batch = ids[start : start + ORPHANS_AT_ONCE]
        try:
            session.run(drop, batch)
        except pg.ForeignKeyViolation:  # one of them is in use, so each by itself
            for content in batch:
                with suppress(pg.ForeignKeyViolation):
                    session.run(drop, [content])


def _row(ordinal: int, item: Item) -> tuple[Any, ...]:
    file, picture = item.file, item.picture
    return (
        ordinal, file.path, file.external_id, file.group_key, file.caption,
        None if file.metadata is None else Jsonb(file.metadata), file.modified_at, item.sha256,
        picture and picture.pixel_sha256, item.size, picture and picture.width, picture and picture.height,
        picture and picture.format,
    )  # fmt: skip
