"""Write to the database: images and vectors are staged by binary COPY and upserted, a chunk in one transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.contents import delete_orphans
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.database.retry import retry_on_deadlock
from pgimgsearch.embeddings.staging import create_staging, insert_staged, stage_vectors
from pgimgsearch.errors import DatabaseError
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.run_log import store_counts
from pgimgsearch.sources.source import ScannedFile

ORPHANS_AT_ONCE = 1000
COLUMNS = {
    "ordinal": "int4", "key": "text", "path": "text", "group_key": "text", "caption": "text", "metadata": "jsonb",
    "modified_at": "timestamptz", "sha256": "bytea", "pixel_hash": "bytea", "bytes": "int8", "width": "int4",
    "height": "int4", "format": "text", "about": "jsonb", "exif": "jsonb",
}  # fmt: skip

# Temporary tables have no statistics; a limit in a lateral makes each row one lookup, however large the database.
STORE_CONTENTS = """
insert into resolved (ordinal, content_id)
select s.ordinal, s.content_id
from (select array_agg(i.ordinal) as ordinals, array_agg(i.sha256) as sha256s, array_agg(i.pixel_hash) as pixel_hashes,
             array_agg(i.bytes) as sizes, array_agg(i.width) as widths, array_agg(i.height) as heights,
             array_agg(i.format) as formats, array_agg(i.about) as abouts from incoming i) n,
     imgsearch._store_contents(n.ordinals, n.sha256s, n.pixel_hashes, n.sizes, n.widths, n.heights, n.formats, n.abouts,
                               row_security_active('imgsearch.image')) s
"""
REPLACED_CONTENTS = """
select array_agg(distinct i.content_id)
from incoming n join resolved r using (ordinal)
cross join lateral (
    select i.content_id from imgsearch.image i where i.collection_id = %s and i.key = n.key limit 1) i
where i.content_id <> r.content_id
"""
UPSERT_IMAGES = """
insert into imgsearch.image as i (content_id, collection_id, key, path, modified_at, group_key, caption, metadata)
select distinct on (n.key) r.content_id, %(collection)s, n.key, n.path, n.modified_at, n.group_key, n.caption,
       case when n.metadata is null then coalesce(o.metadata, '{}') || n.exif else n.exif || n.metadata end
from incoming n join resolved r using (ordinal)
left join lateral (
    select i.metadata from imgsearch.image i where i.collection_id = %(collection)s and i.key = n.key limit 1) o on true
order by n.key, n.ordinal desc
on conflict (collection_id, key) do update set
    content_id = excluded.content_id, path = excluded.path, modified_at = excluded.modified_at, updated_at = now(),
    group_key = coalesce(excluded.group_key, i.group_key), caption = coalesce(excluded.caption, i.caption),
    metadata = excluded.metadata
"""
ADD_EMBEDDINGS = """
insert into {table} (content_id, embedding)
select r.content_id, v.embedding
from {staging} v join resolved r using (ordinal)
on conflict (content_id) do nothing
"""
FAILURE_COLUMNS = "(collection_id, key, path, model_id, kind, error_class, message, bytes, modified_at)"
ON_FAILURE_CONFLICT = """
on conflict (collection_id, key, model_id) do update set
    path = excluded.path, kind = excluded.kind, error_class = excluded.error_class, message = excluded.message,
    bytes = excluded.bytes, modified_at = excluded.modified_at, last_at = now(),
    attempts = least(f.attempts, 999999999) + 1
"""
UPSERT_FAILURE = f"""
insert into imgsearch.ingest_failure as f {FAILURE_COLUMNS}
values (%s, %s, %s, %s, %s, %s, %s, %s, %s) {ON_FAILURE_CONFLICT}
"""  # noqa: S608
DELETE_SETTLED_FAILURES = """
delete from imgsearch.ingest_failure f
using unnest(%s::text[], %s::integer[]) as settled (key, model_id)
where f.collection_id = %s and f.key = settled.key and (f.model_id is null or f.model_id = settled.model_id)
"""
# A skip depends on the bytes; a file that failed may be back tomorrow as it was, so nothing keeps it from another try.
UPSERT_CONTENT_FAILURES = f"""
insert into imgsearch.ingest_failure as f {FAILURE_COLUMNS}
select i.collection_id, i.key, i.path, %(model)s, n.kind, n.error_class, n.message,
       case n.kind when 'skipped' then c.bytes end, case n.kind when 'skipped' then i.modified_at end
from unnest(%(contents)s::bigint[], %(kinds)s::text[], %(classes)s::text[], %(messages)s::text[])
    as n (content_id, kind, error_class, message)
join imgsearch.content c using (content_id)
cross join lateral (select * from imgsearch.image i where i.content_id = n.content_id for key share) i
order by i.collection_id, i.key {ON_FAILURE_CONFLICT}
"""  # noqa: S608
DELETE_CONTENT_FAILURES = """
delete from imgsearch.ingest_failure f using imgsearch.image i
where i.content_id = any(%s) and f.collection_id = i.collection_id and f.key = i.key and f.model_id = %s
"""


class RemovedContents(DatabaseError):  # noqa: N818
    """Contents of items, which were not read as they were stored, are not stored any more."""

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(
            "another session removed what was stored of this file; the next run reads it", hint="run it again"
        )
        self.items = items


class Writer:
    """Writes chunks of a run into one collection, over a session of its own.

    ``tables`` are where the vectors of each model go: its live table or its shadow. With ``exif``, what a camera wrote
    is metadata. Without ``run_id`` the lock and the counts of the run are kept elsewhere.
    """

    def __init__(
        self, session: Session, collection_id: int, run_id: int | None, models: Sequence[StoredModel],
        tables: Sequence[sql.Identifier], *, exif: bool = False,
    ) -> None:  # fmt: skip
        self.exif = exif
        self.session, self.collection_id, self.run_id = session, collection_id, run_id
        self.models, self.tables = list(models), list(tables)
        self.replaced: set[int] = set()
        self.staging = [f"incoming_{position}" for position in range(len(self.models))]
        session.prepare(self._create_staging)

    @property
    def connection(self) -> Connection:
        """The session's connection at this moment."""
        return self.session.connection

    def write(self, items: Sequence[Item], counts: Counts) -> None:
        """Write finished items with the counts that will be true then: all of it, or nothing."""
        self.session.run(self._write, items, counts)

    def _create_staging(self, connection: Connection) -> None:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        connection.execute("create temporary table resolved (ordinal int4, content_id int8) on commit delete rows")
        connection.execute(f"create temporary table incoming ({columns}) on commit delete rows")
        for staging, model in zip(self.staging, self.models, strict=True):
            create_staging(connection, model, staging, "ordinal int4")

    @retry_on_deadlock
    def _write(self, items: Sequence[Item], counts: Counts) -> None:
        good = [item for item in items if item.failure is None and item.rejected is None]
        with self.connection.transaction():
            if self.run_id is not None:
                locks.check_held(self.connection, locks.INGEST, self.collection_id)
            if good:
                self._stage(good)
                self._upsert(good, replacing=any(item.replaces for item in good))
            self._record_failures(items)
            if self.run_id is not None:
                store_counts(self.connection, self.run_id, counts)

    def _stage(self, items: Sequence[Item]) -> None:
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        with self.connection.cursor().copy(
            sql.SQL("copy incoming ({}) from stdin (format binary)").format(names)
        ) as copy:
            copy.set_types(list(COLUMNS.values()))
            for ordinal, item in enumerate(items):
                copy.write_row(_row(ordinal, item, item.exif() if self.exif else {}))
        for position, staging in enumerate(self.staging):
            having = [(o, item.vectors[position]) for o, item in enumerate(items) if position in item.vectors]
            if having:
                ordinals, vectors = zip(*having, strict=True)
                keys = np.array(ordinals, np.int32)
                stage_vectors(self.connection, staging, keys, np.stack(vectors), self.models[position].dim)

    def _upsert(self, items: Sequence[Item], *, replacing: bool) -> None:
        execute = self.connection.execute
        if execute(STORE_CONTENTS).rowcount != len(items):
            rows = execute(
                "select ordinal from incoming where ordinal not in (select ordinal from resolved)"
            ).fetchall()
            raise RemovedContents([items[ordinal] for (ordinal,) in rows])
        replaced = execute(REPLACED_CONTENTS, [self.collection_id]).fetchone() if replacing else None
        execute(UPSERT_IMAGES, {"collection": self.collection_id})
        for staging, table in zip(self.staging, self.tables, strict=True):
            execute(sql.SQL(ADD_EMBEDDINGS).format(table=table, staging=sql.Identifier(staging)))
        if replaced and replaced[0]:
            self.replaced.update(replaced[0])

    def _record_failures(self, items: Sequence[Item]) -> None:
        troubled = [item for item in items if item.failure is not None or item.rejected is not None or item.reasons]
        rows = [row for item in troubled for row in self._failures(item)]
        if rows:
            with self.connection.cursor() as cursor:
                cursor.executemany(UPSERT_FAILURE, rows)
        settled = [
            (item.file.key, self.models[model].model_id)
            for item in items if item.failure is None and item.rejected is None
            for model in item.wanted if model not in item.reasons
        ]  # fmt: skip
        self.connection.execute(
            DELETE_SETTLED_FAILURES,
            [[key for key, _ in settled], [model for _, model in settled], self.collection_id],
        )

    def _failures(self, item: Item) -> list[list[Any]]:
        def row(model_id: int | None, kind: str, name: str, message: str) -> list[Any]:
            file = item.file
            size = file.size if file.size is not None else item.size
            facts = [size, file.modified_at] if item.lasting else [None, None]  # by which it is known again
            return [self.collection_id, file.key, file.path, model_id, kind, name, message.replace("\0", "\\0"), *facts]

        if item.failure is not None:
            return [row(None, "failed", *item.failure)]
        if item.rejected is not None:
            return [row(None, "skipped", "DuplicateImage", item.rejected)]
        return [
            row(self.models[position].model_id, "skipped", "SkippedImage", reason)
            for position, reason in item.reasons.items()
        ]


@dataclass(slots=True)
class MissingContent:
    """A content without a vector, and the files that show it: ``paths`` below ``roots``."""

    content_id: int
    sha256: bytes
    paths: list[str]
    roots: list[str | None]
    item: Item = field(init=False)

    def __post_init__(self) -> None:
        self.item = Item(ScannedFile(self.paths[0], self.paths[0]), frozenset([0]))


class EmbeddingWriter:
    """Writes vectors of stored contents, or why there are none, over its own connection; images stay as they are."""

    STAGING = "staged_embeddings"

    def __init__(self, connection: Connection, model: StoredModel) -> None:
        self.connection, self.model = connection, model
        create_staging(connection, model, self.STAGING)

    @retry_on_deadlock
    def write(self, chunk: Sequence[MissingContent]) -> None:
        """Write a chunk: all of it, or nothing; contents that were removed meanwhile are left out."""
        good = [one for one in chunk if one.item.vectors]
        troubled = [_trouble(one) for one in chunk if not one.item.vectors]
        with self.connection.transaction():
            if good:
                contents = np.array([one.content_id for one in good], np.int64)
                vectors = np.stack([one.item.vectors[0] for one in good])
                stage_vectors(self.connection, self.STAGING, contents, vectors, self.model.dim)
                insert_staged(self.connection, self.STAGING, self.model.table)
                self.connection.execute(DELETE_CONTENT_FAILURES, [contents.tolist(), self.model.model_id])
            if troubled:
                numbers, kinds, classes, messages = (list(column) for column in zip(*troubled, strict=True))
                self.connection.execute(
                    UPSERT_CONTENT_FAILURES,
                    {"model": self.model.model_id, "contents": numbers, "kinds": kinds, "classes": classes,
                     "messages": messages},
                )  # fmt: skip


def is_about_rows(error: BaseException) -> bool:
    """Whether the database refused what is in a row: its bounds, its types, its rules; and not the session."""
    state = getattr(error, "sqlstate", None) or ""
    return state[:2] in {"22", "23", "54"} or state == "P0001"


def drop_orphans(session: Session, contents: Iterable[int]) -> None:
    """Delete contents that no image shows any more, once nothing of the run can need them."""
    ids = list(contents)
    for start in range(0, len(ids), ORPHANS_AT_ONCE):
        batch = ids[start : start + ORPHANS_AT_ONCE]
        session.run(lambda batch: delete_orphans(session.connection, batch), batch)


def _row(ordinal: int, item: Item, exif: dict[str, Any]) -> tuple[Any, ...]:
    file, image = item.file, item.image
    return (
        ordinal, file.key, file.path, file.group_key, file.caption,
        None if file.metadata is None else Jsonb(file.metadata), file.modified_at, item.sha256,
        image and image.pixel_hash, item.size, image and image.width, image and image.height, image and image.format,
        None if image is None else Jsonb(dict(image.about)), Jsonb(exif),
    )  # fmt: skip


def _trouble(one: MissingContent) -> tuple[int, str, str, str]:
    """(content_id, kind, class, message) of a content that has no vector."""
    if one.item.failure is not None:
        kind, (error_class, message) = "failed", one.item.failure
    else:
        kind, error_class, message = "skipped", "SkippedImage", one.item.reasons[0]
    return one.content_id, kind, error_class, message.replace("\0", "\\0")
