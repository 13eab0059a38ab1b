"""Embeddings out of one database and into another, as Parquet: images, their attributes, vectors, and their model."""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgimgsearch.concurrency import batched
from pgimgsearch.database.collections import open_collection
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import (
    StoredModel,
)
from pgimgsearch.database.reconnect import session
from pgimgsearch.embeddings.loaded_model import rejection_reason
from pgimgsearch.embeddings.registry import get_stored
from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.indexing.embedding_table import live_table
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.load_target import SHADOW, join_shadows, wants_shadow
from pgimgsearch.ingest.run_log import lock_collection
from pgimgsearch.ingest.write import Writer, drop_orphans
from pgimgsearch.operations.exported_model import FORMAT, describe_model, exported_model, read_description
from pgimgsearch.reporter import SILENT, Reporter
from pgimgsearch.sources.decode import ImageFacts
from pgimgsearch.sources.locations import is_url
from pgimgsearch.sources.object_store import filesystem
from pgimgsearch.sources.parquet import libraries, open_table
from pgimgsearch.sources.source import ScannedFile
from pgimgsearch.sources.storable import storable
from pgimgsearch.sources.stream import open_stream

DIGEST, PIXELS = 32, 16  # bytes of sha256 and of pixel_hash
ROWS_A_GROUP, BYTES_A_GROUP, ROWS_A_CHUNK = 10_000, 64 << 20, 1000
TYPES = ["text"] * 7 + [
    "timestamptz",
    "bytea",
    "bytea",
    "int8",
    "int4",
    "int4",
    "text",
    "text",
    "bytea",
]  # of IMAGES; as sent
IMAGES = """
select l.name as collection, l.root, i.key, i.path, i.group_key, i.caption, i.metadata::text as metadata,
       i.modified_at, c.sha256, c.pixel_hash, c.bytes, c.width, c.height, c.format, c.about::text as about, e.embedding
from imgsearch.image i join imgsearch.content c using (content_id) join imgsearch.collection l using (collection_id)
join {} e using (content_id)
where %(collection)s::text is null or l.name = %(collection)s
order by l.name, i.image_id
"""


COLUMNS = {"collection", "root", "path", "group_key", "caption", "metadata", "modified_at", "sha256", "bytes", "width",
           "height", "format", "embedding"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did: ``skipped`` rows cannot be stored, ``different`` ones name an image that is another here."""

    model: str
    images: int
    skipped: int
    different: int


def export(url: str, name: str, target: str, collection: str | None, reporter: Reporter = SILENT) -> int:
    """Write a model's images and vectors to a Parquet file or URL; returns how many. All as of one moment."""
    pyarrow, parquet = libraries()
    with connect(url) as connection, connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        model = get_stored(connection, name)
        if (
            collection is not None
            and not connection.execute("select 1 from imgsearch.collection where name = %s", [collection]).fetchone()
        ):
            raise UsageError(f"there is no collection {collection}", hint="see: pgimgsearch stats")
        schema = _schema(pyarrow, model).with_metadata(describe_model(connection, model))
        query = sql.SQL("copy ({}) to stdout (format binary)").format(sql.SQL(IMAGES).format(model.table))
        done = 0
        with (
            _output(target) as stream,
            parquet.ParquetWriter(stream, schema, compression="zstd") as writer,
            connection.cursor() as cursor, cursor.copy(query, {"collection": collection}) as copy,
        ):  # fmt: skip
            copy.set_types(TYPES)
            for rows in batched(copy.rows(), ROWS_A_GROUP, _row_bytes, BYTES_A_GROUP):  # as a row may be large
                columns: list[Any] = [list(column) for column in zip(*rows, strict=True)]
                vectors = _parsed(columns.pop(), model)
                arrays = [pyarrow.array(c, f.type) for c, f in zip(columns, schema, strict=False)]
                arrays.append(pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]))
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
                done += len(rows)
                reporter.progress(done, None)
    return done


def _row_bytes(row: Sequence[Any]) -> int:
    return sum(len(value) for value in row if isinstance(value, str | bytes))


def import_files(
    url: str, places: Sequence[str], *, shadow: bool | None = False, reporter: Reporter = SILENT
) -> list[ImportResult]:
    """Import exported files, at the pace of COPY; what is there already stays as it is.

    ``shadow`` says whether to load into a shadow table, until ``complete_load``; None is where that pays off.
    Raises SourceError for a file that is no export or breaks off, and DriftError where the database has other vectors
    by the name of the model. What was committed before is kept, and the same call goes on.
    """
    total, found = 0, []
    for place in places:
        with _input(place) as table:
            described = _described(table, place)
            with connect(url) as connection:
                model = exported_model(connection, described)
                into_shadow = wants_shadow(connection, model, partial(_count_new, connection, table, model), shadow)
            if into_shadow:
                reporter.say(SHADOW.format(model.name))
            images = skipped = different = 0
            old = described["format"] < FORMAT
            for name, batches in groupby(_rows(table, model, place, old=old), lambda rows: rows[0]["collection"]):
                for kept, left, other in _collection(url, name, model, batches, into_shadow=into_shadow):
                    images, skipped, different = images + kept, skipped + left, different + other
                    reporter.progress(total + images + skipped + different, None)
        total += images + skipped + different
        found.append(ImportResult(model.name, images, skipped, different))
    return found


def _collection(
    url: str, name: str, model: StoredModel, chunks: Iterator[list[dict[str, Any]]], *, into_shadow: bool
) -> Iterator[tuple[int, int, int]]:
    """Write chunks of one collection; yields for each how many rows were taken, left out, and of another image."""
    with ExitStack() as stack:
        writing = stack.enter_context(session(url))
        writer, collection_id = None, 0
        for rows in chunks:
            if writer is None:
                collection_id, _, _ = open_collection(writing.connection, name, rows[0]["root"], name)
                lock_collection(writing, collection_id, name)
                shadows = join_shadows(writing, [model], {model.name} if into_shadow else set())
                table = shadows[model.model_id] if into_shadow else live_table(model)
                writer = Writer(writing, collection_id, None, [model], [table.identifier])
            items = [item for row in rows if (item := _item(row)) is not None]
            good = _as_stored(writing.connection, collection_id, items)
            writer.write(good, Counts([model.name]))
            yield len(good), len(rows) - len(items), len(items) - len(good)
        if writer is not None:
            drop_orphans(writing, writer.replaced)


def _as_stored(connection: Connection, collection_id: int, items: Sequence[Item]) -> list[Item]:
    """The items as they change nothing that is stored: images that are there keep what is said of them.

    Those whose key is that of an image of other bytes are left out.
    """
    rows = connection.execute(
        "select i.key, c.sha256, i.path, i.modified_at from imgsearch.image i join imgsearch.content c "
        "using (content_id) where i.collection_id = %s and i.key = any(%s)",
        [collection_id, [item.file.key for item in items]],
    ).fetchall()
    stored = {key: (digest, path, modified_at) for key, digest, path, modified_at in rows}
    kept = []
    for item in items:
        digest, path, modified_at = stored.get(item.file.key, (item.sha256, None, None))
        if digest != item.sha256:
            continue
        if path is not None:
            item.file = ScannedFile(path, path, item.file.size, modified_at, item.file.key)
        stored.setdefault(item.file.key, (item.sha256, None, None))  # for others of that key in this chunk
        kept.append(item)
    return kept


def _count_new(connection: Connection, table: Any, model: StoredModel) -> int:
    """How many rows of an export a model has no vector of, as far as counts tell."""
    collections = table.read(columns=["collection"]).column("collection").unique().to_pylist()
    row = connection.execute(
        sql.SQL(
            "select count(*) from imgsearch.image i join {} e using (content_id) "
            "join imgsearch.collection c using (collection_id) where c.name = any(%s)"
        ).format(model.table),
        [collections],
    ).fetchone()
    assert row is not None
    return max(0, int(table.metadata.num_rows) - int(row[0]))


def _item(row: dict[str, Any]) -> Item | None:
    """A row as it is written; None for one that cannot be stored."""
    try:
        metadata, about = json.loads(row["metadata"]), json.loads(row["about"])
        valid = (
            isinstance(metadata, dict), isinstance(about, dict), row["bytes"] >= 0, row["width"] > 0, row["height"] > 0,
            len(row["sha256"]) == DIGEST, row["pixel_hash"] is None or len(row["pixel_hash"]) == PIXELS,
            rejection_reason(row["embedding"]) is None,
            None not in (row["path"], row["key"], row["format"]),
        )  # fmt: skip
    except (ValueError, TypeError, RecursionError):
        return None
    file = ScannedFile(
        row["path"],
        row["path"],
        row["bytes"],
        row["modified_at"],
        row["key"],
        row["group_key"],
        row["caption"],
        metadata,
    )
    if not all(valid) or storable(file).problem is not None:
        return None
    return Item(
        file, frozenset([0]), replaces=True, sha256=row["sha256"], size=row["bytes"],
        image=ImageFacts(row["pixel_hash"], row["width"], row["height"], row["format"], about=about),
        vectors={0: row["embedding"]},
    )  # fmt: skip


def _described(table: Any, place: str) -> dict[str, Any]:
    """What a file says of its model, once it has all columns."""
    described = read_description(table.schema_arrow.metadata or {}, place)
    names = set(table.schema_arrow.names)
    wanted = COLUMNS if "external_id" in names else COLUMNS | {"key", "pixel_hash"}
    if missing := wanted - names:
        raise SourceError(f"{place} has no column {', '.join(sorted(missing))}", hint="export it again")
    return described


def _rows(table: Any, model: StoredModel, place: str, *, old: bool) -> Iterator[list[dict[str, Any]]]:
    """Chunks of rows of one collection each, with their vectors in the type of the column."""
    try:
        for batch in table.iter_batches(batch_size=ROWS_A_CHUNK):
            values = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
            width = model.dim // 8 if model.storage == "bit" else model.dim
            vectors = values.reshape(batch.num_rows, width)
            names = [name for name in batch.schema.names if name != "embedding"]
            rows = batch.select(names).to_pylist()
            for row, vector in zip(rows, vectors, strict=True):
                row["embedding"] = vector
                if not row["collection"] or not isinstance(row["collection"], str):
                    raise ValueError("a row names no collection")
                if "external_id" in row:  # of format 1, where it did not have to be unique
                    row["key"] = row["path"]
                    row["metadata"] = _with_external_id(row["metadata"], row["external_id"])
                if old:  # which hashed other pixels
                    row |= {"pixel_hash": None, "about": "{}"}
            for _, some in groupby(rows, lambda row: row["collection"]):
                yield list(some)
    except Exception as error:  # pyarrow and wrong types raise many kinds
        raise SourceError(f"{place} breaks off: {error}", hint="export it again; what came before is kept") from error


def _with_external_id(metadata: str, external_id: str | None) -> str:
    return metadata if external_id is None else json.dumps({"external_id": external_id} | json.loads(metadata))


def _schema(pyarrow: Any, model: StoredModel) -> Any:
    kinds = {
        "collection": pyarrow.string(), "root": pyarrow.string(), "key": pyarrow.string(),
        "path": pyarrow.string(), "group_key": pyarrow.string(), "caption": pyarrow.string(),
        "metadata": pyarrow.string(), "modified_at": pyarrow.timestamp("us", "UTC"), "sha256": pyarrow.binary(32),
        "pixel_hash": pyarrow.binary(), "bytes": pyarrow.int64(), "width": pyarrow.int32(),
        "height": pyarrow.int32(), "format": pyarrow.string(), "about": pyarrow.string(),
    }  # fmt: skip
    number = {"halfvec": pyarrow.float16(), "vector": pyarrow.float32(), "bit": pyarrow.uint8()}[model.storage]
    width = model.dim // 8 if model.storage == "bit" else model.dim
    return pyarrow.schema([*kinds.items(), ("embedding", pyarrow.list_(number, width))])


def _parsed(values: list[bytes], model: StoredModel) -> NDArray[Any]:
    """(n, dim) of what Postgres sends (pgvector: halfvec_send, vector_send; bit_send), each after a head of 4 bytes."""
    kind = {"halfvec": ">f2", "vector": ">f4", "bit": "u1"}[model.storage]
    packed = np.frombuffer(b"".join(value[4:] for value in values), kind)
    return packed.astype(packed.dtype.newbyteorder("=")).reshape(len(values), -1)


@contextmanager
def _output(target: str) -> Iterator[Any]:
    try:
        if is_url(target):
            store, path = filesystem(target)
            with store.open(path, "wb") as stream:
                yield stream
        else:
            place = Path(target)  # written aside, so that an export that breaks off leaves an earlier one as it was
            part = place.with_name(f".{place.name[:50]}.{secrets.token_hex(4)}.part")
            try:
                with part.open("xb") as file:
                    yield file
                part.replace(place)
            finally:
                part.unlink(missing_ok=True)
    except (OSError, ImportError) as error:
        raise SourceError(f"cannot write {target}: {error}", hint="name a file in a folder that exists") from error


@contextmanager
def _input(place: str) -> Iterator[Any]:
    with ExitStack() as stack:
        try:
            table = stack.enter_context(open_table(stack.enter_context(open_stream(place, seekable=True))))
        except (OSError, ImportError, ValueError) as error:
            raise SourceError(
                f"cannot read {place}: {error}", hint="name a Parquet file that pgimgsearch export made"
            ) from error
        yield table
