"""Fill a model: embed what is stored already, from the files that it was ingested from.

Only embeddings are written, and why there are none: images come and go meanwhile as those who ingest want it.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql

from pgimgsearch.database.connection import Connection, connect, vector_schema
from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import InterruptedRun
from pgimgsearch.pipeline import fetch
from pgimgsearch.pipeline.copy_in import copy_block
from pgimgsearch.pipeline.decode import limit_pixels, register_formats
from pgimgsearch.pipeline.embed import embed
from pgimgsearch.pipeline.item import Item
from pgimgsearch.pipeline.loaded import LoadedModel
from pgimgsearch.pipeline.plan import digest
from pgimgsearch.pipeline.run import Options, prepare
from pgimgsearch.pipeline.scan import ScannedFile, location_of
from pgimgsearch.pipeline.stages import Stopwatch, ordered_map, prefetch, stop_signals

CHUNK, SECONDS_A_CHUNK = 500, 2.0
CONTENTS_A_PAGE = 2000  # looked up at once, so that no transaction lasts as long as the work

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Contents that images show, those with a vector, and those skipped as the model finds too little in them."""

    contents: int
    embedded: int
    skipped: int

    @property
    def missing(self) -> int:
        """Contents that the model still has to embed, or cannot, as their files are gone or changed."""
        return self.contents - self.embedded - self.skipped


@dataclass(slots=True)
class Lacking:
    """A content without a vector, and the files that show it: (collection_id, path, location)."""

    content_id: int
    sha256: bytes
    files: list[tuple[int, str, str]]
    item: Item


def coverage(connection: Connection, model: StoredModel) -> Coverage:
    """Counted, not estimated, over contents that images show."""
    query = sql.SQL(
        "select count(*), count(*) filter (where s.embedded), count(*) filter (where s.skipped and not s.embedded) "
        "from (select exists (select from {} e where e.content_id = c.content_id) as embedded, exists (select "
        "from imgsearch.image i join imgsearch.ingest_failure f using (collection_id, path) where "
        "i.content_id = c.content_id and f.kind = 'skipped' and f.model_id = {}) as skipped from imgsearch.content c "
        "where exists (select from imgsearch.image i where i.content_id = c.content_id)) s"
    ).format(model.table, sql.Literal(model.model_id))
    row = connection.execute(query).fetchone()
    assert row is not None
    return Coverage(*row)


def fill(url: str, model: LoadedModel, options: Options, progress: Progress) -> Coverage:
    """Embed every stored content that the model has no vector of, until there is none left that can be read.

    What arrives meanwhile is picked up too. A file counts only with the bytes that were ingested. Raises InterruptedRun
    on Ctrl-C or SIGTERM: what is finished is kept, and the same call goes on from there.
    """
    limit_pixels(options.max_pixels)
    register_formats()
    with (
        connect(url) as reader,
        connect(url) as writer,
        ThreadPoolExecutor(options.workers, thread_name_prefix="decode") as pool,
        stop_signals() as stopped,
    ):
        keep = _Keep(writer, model.stored)
        given_up: set[int] = set()
        before = coverage(reader, model.stored)
        done = before.embedded + before.skipped
        while page := _lacking(reader, model.stored, given_up):
            with closing(_embedded(pool, page, model, options)) as finished:
                for chunk in _chunks(finished):
                    keep.write(chunk)
                    given_up |= {one.content_id for one in chunk if not one.item.vectors}
                    done += len(chunk)
                    progress(done, before.contents)
                    if stopped.is_set():
                        raise InterruptedRun(hint="run the same command again to go on")
        return coverage(reader, model.stored)


def _chunks(finished: Iterator[Lacking]) -> Iterator[list[Lacking]]:
    """What is written at once: enough for a COPY, and never so much that a kill costs minutes."""
    chunk: list[Lacking] = []
    last = time.monotonic()
    for one in finished:
        chunk.append(one)
        if len(chunk) >= CHUNK or time.monotonic() - last > SECONDS_A_CHUNK:
            yield chunk
            chunk, last = [], time.monotonic()
    if chunk:
        yield chunk


def _lacking(connection: Connection, model: StoredModel, given_up: set[int]) -> list[Lacking]:
    """A page of contents that the model has neither a vector of nor a reason to have none."""
    query = sql.SQL(
        "select c.content_id, c.sha256, array_agg(i.collection_id order by i.image_id), array_agg(i.path order by "
        "i.image_id), array_agg(l.root order by i.image_id) from imgsearch.content c "
        "join imgsearch.image i using (content_id) join imgsearch.collection l using (collection_id) "
        "where c.content_id <> all(%s) and not exists (select from {} e where e.content_id = c.content_id) "
        "and not exists (select from imgsearch.ingest_failure f where f.collection_id = i.collection_id "
        "and f.path = i.path and f.model_id = %s and f.kind = 'skipped') group by 1, 2 order by 1 limit %s"
    ).format(model.table)
    rows = connection.execute(query, [list(given_up), model.model_id, CONTENTS_A_PAGE]).fetchall()
    return [
        Lacking(
            content, sha256,
            [(c, path, location_of(path, root)) for c, path, root in zip(collections, paths, roots, strict=True)],
            Item(ScannedFile(paths[0], location_of(paths[0], roots[0])), frozenset([0])),
        )
        for content, sha256, collections, paths, roots in rows
    ]  # fmt: skip


def _embedded(
    pool: ThreadPoolExecutor, page: list[Lacking], model: LoadedModel, options: Options
) -> Generator[Lacking, None, None]:
    """Read and decode in a pool, embed in batches; in order."""

    def read(one: Lacking) -> Lacking:
        for number, (_, path, location) in enumerate(one.files):
            try:
                one.item.file = ScannedFile(path, location)
                one.item.data = fetch.read(location, options.max_bytes)
                digest(one.item)
                if one.item.sha256 != one.sha256:
                    raise ValueError("the file has other bytes than those that were ingested")
                prepare(one.item, [model], options.max_pixels)
                break
            except Exception as error:  # a broken or vanished file never stops a run; perhaps a copy of it is there
                if number == len(one.files) - 1:
                    one.item.fail(error)
        return one

    ready = prefetch(ordered_map(pool, read, iter(page), 2 * options.workers), 2 * model.batch_size, "prepare")
    waiting: list[Lacking] = []

    def items() -> Iterator[Item]:
        for one in ready:
            waiting.append(one)
            yield one.item

    for _ in embed(items(), [model], Stopwatch(), options.max_load):
        yield waiting.pop(0)


class _Keep:
    """Writes vectors, and why there are none, over a connection of its own."""

    def __init__(self, connection: Connection, model: StoredModel) -> None:
        self.connection, self.model = connection, model
        kind = "bit" if model.storage == "bit" else f"{vector_schema(connection)}.{model.storage}"
        connection.execute(
            sql.SQL("create temporary table filled (content_id int8, embedding {}({})) on commit delete rows").format(
                sql.SQL(kind), sql.Literal(model.dim)
            )
        )

    def write(self, chunk: list[Lacking]) -> None:
        """A chunk, all of it or nothing; contents that were removed meanwhile are left out."""
        good = [one for one in chunk if one.item.vectors]
        with self.connection.transaction():
            if good:
                contents = np.array([one.content_id for one in good], np.int64)
                block = copy_block(contents, np.stack([one.item.vectors[0] for one in good]), self.model.dim)
                with self.connection.cursor().copy("copy filled from stdin (format binary)") as copy:
                    copy.write(block)
                self.connection.execute(
                    sql.SQL(
                        "insert into {} (content_id, embedding) select f.content_id, f.embedding from filled f "
                        "cross join lateral (select from imgsearch.content c where c.content_id = f.content_id "
                        "for key share) c "
                        "order by f.content_id on conflict (content_id) do nothing"
                    ).format(self.model.table)
                )
            for one in chunk:
                self._explain(one)

    def _explain(self, one: Lacking) -> None:
        """Record why a content has no vector of this model, under each of its files, or that it has one now."""
        collections, paths, _ = (list(column) for column in zip(*one.files, strict=True))
        parameters: Mapping[str, Any] = {"model": self.model.model_id, "collections": collections, "paths": paths}
        self.connection.execute(
            "delete from imgsearch.ingest_failure f using unnest(%(collections)s::integer[], %(paths)s::text[]) "
            "as n (collection_id, path) where f.collection_id = n.collection_id and f.path = n.path "
            "and f.model_id = %(model)s",
            parameters,
        )
        if one.item.vectors:
            return
        kind = "failed" if one.item.failure else "skipped"
        error, message = one.item.failure or ("SkippedPicture", one.item.reasons.get(0, ""))
        self.connection.execute(
            "insert into imgsearch.ingest_failure (collection_id, path, model_id, kind, error_class, message) "
            "select n.collection_id, n.path, %(model)s, %(kind)s, %(error)s, %(message)s "
            "from unnest(%(collections)s::integer[], %(paths)s::text[]) as n (collection_id, path) "
            "on conflict (collection_id, path, model_id) do nothing",
            {**parameters, "kind": kind, "error": error, "message": message.replace("\0", "\\0")},
        )
