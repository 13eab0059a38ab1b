"""What is left to do: files the store does not know, or not for every model, each distinct content once."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pgimgsearch.concurrency import batched
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.errors import DatabaseError
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.sources.source import ScannedFile, is_url

FILES_A_LOOKUP, BYTES_A_LOOKUP = 500, 64 << 20


@dataclass
class Planner:
    """Compares files with the store, over a session of its own. Not for several threads at once."""

    session: Session
    collection_id: int
    models: Sequence[StoredModel]
    counts: Counts
    retry_failed: bool = False
    remember: bool = False
    beside: Mapping[int, StoredModel] = field(default_factory=dict)  # by model_id, what is beside the live tables
    in_flight: dict[bytes, Item] = field(default_factory=dict)

    @property
    def connection(self) -> Connection:
        """The session's at this moment."""
        return self.session.connection

    def plan(self, files: Iterator[ScannedFile]) -> Iterator[Item]:
        """Yield an item for each file that needs work; count the others."""
        if self.remember:
            self.session.prepare(_create_seen)
        for chunk in batched(files, FILES_A_LOOKUP, lambda file: len(file.data or b""), BYTES_A_LOOKUP):
            if self.remember:
                self.session.run(self._remember, chunk)
            paths = [file.path for file in chunk]
            known, failed = self.session.run(self._known, paths), self.session.run(self._failed, paths)
            changed = []
            for file in chunk:
                wanted = self._wanted(file, known.get(file.path), failed.get(file.path, {}))
                if wanted:
                    item = Item(file, wanted, replaces=file.path in known)
                    if file.problem is not None:
                        item.fail(file.problem)
                    yield item
                elif file.path in known and _describes_anew(file, known[file.path]):
                    changed.append(file)
            self.session.run(self._describe, changed)

    def deduplicate(self, batch: list[Item]) -> Iterator[Item]:
        """Mark items whose content is stored, or further ahead in this run; the bytes of those are dropped."""
        digests = [item.sha256 for item in batch if item.failure is None]
        # before the store is asked: what is written and forgotten in between is still known from here
        ahead = {sha256: item for sha256 in digests if (item := self.in_flight.get(sha256)) is not None}
        rows = self.session.run(self._contents, digests)
        for item in batch:
            if item.failure is None:
                item.reused = item.wanted & rows.get(item.sha256, frozenset())
                item.twin = ahead.get(item.sha256) or self.in_flight.get(item.sha256)
                if item.twin is not None:
                    item.reused |= item.wanted & item.twin.wanted
                elif item.wanted - item.reused:
                    self.in_flight[item.sha256] = item
                if not item.wanted - item.reused:
                    item.data = b""
            yield item

    def forget(self, item: Item) -> None:
        """The item is written: from now on the store knows its content."""
        if self.in_flight.get(item.sha256) is item:
            del self.in_flight[item.sha256]

    def prune(self, scope: str | None) -> list[int]:
        """Remove images and failures that were not seen: below a folder (a path prefix), or all with None.

        A folder's scope leaves addresses and absolute paths alone, which came from a list. Returns the contents.
        Raises DatabaseError where the connection was lost, and with it what was seen.
        """
        if self.session.losses:
            raise DatabaseError(
                "nothing was pruned: with the connection that was lost went the list of files that are there",
                hint="all files are ingested; run the same command again to prune",
            )
        listed = "path ~ '^([a-z][a-z0-9+.-]*:/)?/'"
        where = f"collection_id = %s and (%s::text is null or (starts_with(path, %s) and not {listed})) "
        unseen = "and not exists (select from seen s where s.path = t.path)"
        values = [self.collection_id, scope, scope]
        self.connection.execute(f"delete from imgsearch.ingest_failure t where {where}{unseen}", values)  # noqa: S608
        gone = self.connection.execute(
            f"delete from imgsearch.image t where {where}{unseen} returning content_id",  # noqa: S608
            values,
        )
        return [row[0] for row in gone.fetchall()]

    def _wanted(self, file: ScannedFile, known: Any, failed: dict[int | None, Any]) -> frozenset[int]:
        """The models that still need this file; the others are counted."""
        same = known is not None and _same(file, known["bytes"], known["modified_at"])
        again = self.retry_failed or file.unlisted
        wanted = set()
        for position, model in enumerate(self.models):
            earlier = failed.get(model.model_id) or failed.get(None)
            if same and known["have"][position]:
                self.counts.add(position, "unchanged")
            elif earlier and not again and _same(file, earlier["bytes"], earlier["modified_at"]):
                self.counts.add(position, "skipped")
            else:
                wanted.add(position)
        return frozenset(wanted)

    def _known(self, paths: list[str]) -> dict[str, Any]:
        """What the store knows of paths, with a flag for each model that has a vector."""
        query = sql.SQL(
            "select i.path, c.bytes, i.modified_at, i.external_id, i.group_key, i.caption, i.metadata, "
            "array[{}]::boolean[] "
            "from imgsearch.image i join imgsearch.content c using (content_id) "
            "where i.collection_id = %s and i.path = any(%s)"
        ).format(self._flags())
        names = ("path", "bytes", "modified_at", "external_id", "group_key", "caption", "metadata", "have")
        rows = self.connection.execute(query, [self.collection_id, paths]).fetchall()
        return {row[0]: dict(zip(names, row, strict=True)) for row in rows}

    def _failed(self, paths: list[str]) -> dict[str, dict[int | None, Any]]:
        rows = self.connection.execute(
            "select path, model_id, bytes, modified_at from imgsearch.ingest_failure "
            "where collection_id = %s and path = any(%s) and (kind = 'skipped' or model_id is null)",
            [self.collection_id, paths],
        ).fetchall()
        failed: dict[str, dict[int | None, Any]] = {}
        for path, model_id, size, modified_at in rows:
            failed.setdefault(path, {})[model_id] = {"bytes": size, "modified_at": modified_at}
        return failed

    def _contents(self, digests: list[bytes]) -> dict[bytes, frozenset[int]]:
        """Stored contents by digest, with the models that have a vector of each."""
        query = sql.SQL(
            "select c.sha256, array[{}]::boolean[] from imgsearch.content c where c.sha256 = any(%s)"
        ).format(self._flags())
        rows = self.connection.execute(query, [digests]).fetchall()
        return {row[0]: frozenset(i for i, has in enumerate(row[1]) if has) for row in rows}

    def _flags(self) -> sql.Composed:
        exists = sql.SQL("exists (select from {} e where e.content_id = c.content_id)")

        def has(model: StoredModel) -> sql.Composed:
            there = self.beside.get(model.model_id)
            return sql.SQL(" or ").join(exists.format(one.table) for one in (model, there) if one)

        return sql.SQL(", ").join(map(has, self.models))

    def _describe(self, files: list[ScannedFile]) -> None:
        """Store new captions, groups, ids and metadata of files whose bytes are unchanged."""
        with self.connection.cursor() as cursor:
            cursor.executemany(
                "update imgsearch.image set external_id = coalesce(%s, external_id), "
                "group_key = coalesce(%s, group_key), "
                "caption = coalesce(%s, caption), metadata = coalesce(%s, metadata), updated_at = now() "
                "where collection_id = %s and path = %s",
                [
                    [
                        f.external_id,
                        f.group_key,
                        f.caption,
                        None if f.metadata is None else Jsonb(f.metadata),
                        self.collection_id,
                        f.path,
                    ]
                    for f in files
                ],
            )

    def _remember(self, files: list[ScannedFile]) -> None:
        self.connection.execute(
            "insert into seen select unnest(%s::text[]) on conflict do nothing", [[f.path for f in files]]
        )


def _create_seen(connection: Connection) -> None:
    connection.execute("create temporary table if not exists seen (path text primary key)")


def digest(item: Item) -> Item:
    """Hash the bytes that were read."""
    item.sha256, item.size = hashlib.sha256(item.data).digest(), len(item.data)
    return item


def _same(file: ScannedFile, size: int | None, modified_at: Any) -> bool:
    """Whether a file is as it was; an address that tells neither size nor time counts as unchanged."""
    untold = file.size is None and file.modified_at is None and file.problem is None
    return (untold and is_url(file.location)) or (file.size == size and file.modified_at == modified_at)


def _describes_anew(file: ScannedFile, known: dict[str, Any]) -> bool:
    given = {name: getattr(file, name) for name in ("external_id", "group_key", "caption", "metadata")}
    return any(value is not None and value != known[name] for name, value in given.items())
