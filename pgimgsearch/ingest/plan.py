"""What is left to do: files that the database does not have, or not for every model, each distinct content once."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pgimgsearch.concurrency import batched
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.indexing.embedding_table import EmbeddingTable
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.oddities import Oddities
from pgimgsearch.sources.exif import as_metadata
from pgimgsearch.sources.locations import is_url
from pgimgsearch.sources.source import ScannedFile
from pgimgsearch.sources.storable import storable

FILES_A_LOOKUP, BYTES_A_LOOKUP = 500, 64 << 20


@dataclass
class Planner:
    """Compares files with the database, over a session of its own. Not for several threads at once."""

    session: Session
    collection_id: int
    models: Sequence[StoredModel]
    counts: Counts
    retry_failed: bool = False
    rehash: bool = False
    exif: bool = True  # whether what a camera wrote is metadata
    remember_seen: bool = False
    shadows: Mapping[int, EmbeddingTable] = field(default_factory=dict)  # by model_id
    in_flight: dict[bytes, Item] = field(default_factory=dict)
    seen: int = 0  # distinct keys, where they are remembered
    oddities: Oddities = field(default_factory=Oddities)

    @property
    def connection(self) -> Connection:
        """The session's connection at this moment."""
        return self.session.connection

    def plan(self, files: Iterator[ScannedFile]) -> Iterator[Item]:
        """Yield an item for each file that needs work; count the others."""
        if self.remember_seen:
            self.session.prepare(_create_seen)
        for chunk in batched(map(storable, files), FILES_A_LOOKUP, lambda file: len(file.data or b""), BYTES_A_LOOKUP):
            if self.remember_seen:
                self.session.run(self._remember_seen, chunk)
            keys = [file.key for file in chunk]
            known, failed = self.session.run(self._known, keys), self.session.run(self._failed, keys)
            changed, settled = [], []
            for file in chunk:
                wanted = self._wanted(file, known.get(file.key), failed.get(file.key, {}))
                if wanted:
                    item = Item(file, wanted, replaces=file.key in known)
                    if file.problem is not None:
                        item.fail(file.problem, lasting=False)
                    yield item
                    continue
                if file.key in known:
                    merged = self._with_exif(file, known[file.key]["about"])
                    if _has_only_new_attributes(merged, known[file.key]):
                        changed.append(merged)
                if file.key in known and None in failed.get(file.key, {}):
                    settled.append(file.key)  # as its row could not be read, and its image is stored
            self.session.run(self._update_attributes, changed)
            self.session.run(self._forget_failures, settled)

    def deduplicate(self, batch: list[Item]) -> Iterator[Item]:
        """Mark items whose content is stored, or came earlier in this run; their bytes are dropped."""
        digests = [item.sha256 for item in batch if item.failure is None]
        # before the database is asked: what is written and forgotten in between is still found here
        ahead = {sha256: item for sha256 in digests if (item := self.in_flight.get(sha256)) is not None}
        rows = self.session.run(self._contents, digests)
        for item in batch:
            if item.failure is None:
                having, item.about = rows.get(item.sha256, (frozenset(), {}))
                item.reused = item.wanted & having
                item.twin = ahead.get(item.sha256) or self.in_flight.get(item.sha256)
                if item.twin is not None:
                    item.reused |= item.wanted & item.twin.wanted
                elif item.wanted - item.reused:
                    self.in_flight[item.sha256] = item
                if not item.wanted - item.reused:
                    item.data = b""
            yield item

    def forget(self, item: Item) -> None:
        """The item is written: from now on the database has its content."""
        if self.in_flight.get(item.sha256) is item:
            del self.in_flight[item.sha256]

    def _with_exif(self, file: ScannedFile, about: dict[str, Any]) -> ScannedFile:
        """A file whose metadata, if any are given, have what a camera wrote besides."""
        if not self.exif or file.metadata is None:
            return file
        return replace(file, metadata=as_metadata(about) | file.metadata)

    def _wanted(self, file: ScannedFile, known: Any, failed: dict[int | None, Any]) -> frozenset[int]:
        """The models that still need this file; the others are counted."""
        same = known is not None and not self.rehash and file.problem is None and _same(file, known)
        again = self.retry_failed or self.rehash or file.unlisted
        wanted = set()
        for position, model in enumerate(self.models):
            earlier = failed.get(model.model_id) or failed.get(None)
            if same and known["have"][position]:
                self.counts.add(position, "unchanged")
            elif earlier and not again and earlier["bytes"] is not None and _same(file, earlier):
                self.counts.add(position, "skipped")
            else:
                wanted.add(position)
        return frozenset(wanted)

    def _known(self, keys: list[str]) -> dict[str, Any]:
        """Key -> what is stored of the image, with a flag for each model that has a vector."""
        query = sql.SQL(
            "select i.key, i.path, c.bytes, i.modified_at, i.group_key, i.caption, i.metadata, c.about, "
            "array[{}]::boolean[] "
            "from imgsearch.image i join imgsearch.content c using (content_id) "
            "where i.collection_id = %s and i.key = any(%s)"
        ).format(self._flags())
        names = ("key", "path", "bytes", "modified_at", "group_key", "caption", "metadata", "about", "have")
        rows = self.connection.execute(query, [self.collection_id, keys]).fetchall()
        return {row[0]: dict(zip(names, row, strict=True)) for row in rows}

    def _failed(self, keys: list[str]) -> dict[str, dict[int | None, Any]]:
        rows = self.connection.execute(
            "select key, model_id, path, bytes, modified_at from imgsearch.ingest_failure "
            "where collection_id = %s and key = any(%s) and (kind = 'skipped' or model_id is null)",
            [self.collection_id, keys],
        ).fetchall()
        failed: dict[str, dict[int | None, Any]] = {}
        for key, model_id, *facts in rows:
            failed.setdefault(key, {})[model_id] = dict(zip(("path", "bytes", "modified_at"), facts, strict=True))
        return failed

    def _contents(self, digests: list[bytes]) -> dict[bytes, tuple[frozenset[int], dict[str, Any]]]:
        """Stored contents by digest, with the models that have a vector of each, and what is lost with their files."""
        query = sql.SQL(
            "select c.sha256, array[{}]::boolean[], c.about from imgsearch.content c where c.sha256 = any(%s)"
        ).format(self._flags())
        rows = self.connection.execute(query, [digests]).fetchall()
        return {row[0]: (frozenset(i for i, has in enumerate(row[1]) if has), row[2]) for row in rows}

    def _flags(self) -> sql.Composed:
        exists = sql.SQL("exists (select from {} e where e.content_id = c.content_id)")

        def has(model: StoredModel) -> sql.Composed:
            shadow = self.shadows.get(model.model_id)
            tables = [model.table] + ([shadow.identifier] if shadow else [])
            return sql.SQL(" or ").join(exists.format(table) for table in tables)

        return sql.SQL(", ").join(map(has, self.models))

    def _update_attributes(self, files: list[ScannedFile]) -> None:
        """Store new captions, groups and metadata of files whose bytes are unchanged."""
        with self.connection.cursor() as cursor:
            cursor.executemany(
                "update imgsearch.image set group_key = coalesce(%s, group_key), "
                "caption = coalesce(%s, caption), metadata = coalesce(%s, metadata), updated_at = now() "
                "where collection_id = %s and key = %s",
                [
                    [
                        f.group_key,
                        f.caption,
                        None if f.metadata is None else Jsonb(f.metadata),
                        self.collection_id,
                        f.key,
                    ]
                    for f in files
                ],
            )

    def _forget_failures(self, keys: list[str]) -> None:
        """Delete failures, for every model, of images that are stored."""
        if keys:
            self.connection.execute(
                "delete from imgsearch.ingest_failure where collection_id = %s and key = any(%s) and model_id is null",
                [self.collection_id, keys],
            )

    def _remember_seen(self, files: list[ScannedFile]) -> None:
        added = self.connection.execute(
            "insert into seen select unnest(%s::text[]) on conflict do nothing", [[f.key for f in files]]
        )
        self.seen += added.rowcount


def _create_seen(connection: Connection) -> None:
    connection.execute("create temporary table seen (key text primary key)")


def digest(item: Item) -> Item:
    """Hash the bytes that were read."""
    item.sha256, item.size = hashlib.sha256(item.data).digest(), len(item.data)
    return item


def _same(file: ScannedFile, known: dict[str, Any]) -> bool:
    """Whether a file is as it was; a URL without size and time counts as unchanged, but not another URL by its key."""
    if file.path != known["path"]:
        return False
    unknown = file.size is None and file.modified_at is None and file.problem is None
    return (unknown and is_url(file.location)) or (
        file.size == known["bytes"] and file.modified_at == known["modified_at"]
    )


def _has_only_new_attributes(file: ScannedFile, known: dict[str, Any]) -> bool:
    """Whether a file is as it was and comes with another caption, group or metadata; one that failed keeps the old."""
    given = {name: getattr(file, name) for name in ("group_key", "caption", "metadata")}
    return _same(file, known) and any(value is not None and value != known[name] for name, value in given.items())
