"""Embeddings out of one database and into another, as Parquet: images, their attributes, vectors, and their model."""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from pgimgsearch.database.collections import open_collection
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import (
    Canary,
    StoredModel,
    StoredReduction,
    canary_of,
    find_model,
    get_model,
    insert_model,
    reduction_of,
)
from pgimgsearch.database.reconnect import session
from pgimgsearch.embeddings.loaded_model import rejection_reason
from pgimgsearch.embeddings.registry import get_stored, suitable_aliases
from pgimgsearch.errors import DriftError, SourceError, UsageError
from pgimgsearch.indexing.embedding_table import live_table
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.load_target import SHADOW, join_shadows, wants_shadow
from pgimgsearch.ingest.run_log import lock_collection
from pgimgsearch.ingest.write import Writer, drop_orphans
from pgimgsearch.models import catalog
from pgimgsearch.models.backends import backends
from pgimgsearch.reporter import SILENT, Reporter
from pgimgsearch.sources.decode import ImageFacts
from pgimgsearch.sources.locations import is_url
from pgimgsearch.sources.object_store import filesystem
from pgimgsearch.sources.parquet import libraries, open_table
from pgimgsearch.sources.source import ScannedFile
from pgimgsearch.sources.storable import storable
from pgimgsearch.sources.stream import open_stream

PLACE = re.compile(r"[/~]|.*(://|\.\./|\0)|local-dir:|[a-zA-Z]:\\")  # a path or a URL
ROWS_A_GROUP, ROWS_A_CHUNK = 10_000, 1000
FORMAT, KEY = 2, b"pgimgsearch"
MODEL_FIELDS = (
    "name", "dim", "storage", "backend", "checkpoint", "revision", "output", "preprocess", "normalize", "logit_scale",
    "logit_bias", "fingerprint", "full_dim", "has_text", "licence", "near", "similar", "ef_search", "index_spec",
)  # fmt: skip
IMAGES = """
select l.name as collection, l.root, i.key, i.path, i.group_key, i.caption, i.metadata::text as metadata,
       i.modified_at, c.sha256, c.pixel_hash, c.bytes, c.width, c.height, c.format, e.embedding
from imgsearch.image i join imgsearch.content c using (content_id) join imgsearch.collection l using (collection_id)
join {} e using (content_id)
where %(collection)s::text is null or l.name = %(collection)s
order by l.name, i.image_id
"""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did: ``skipped`` rows had a vector that must not be stored."""

    model: str
    images: int
    skipped: int


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
        schema = _schema(pyarrow, model).with_metadata({KEY: json.dumps(_describe_model(connection, model)).encode()})
        done = 0
        with (
            _output(target) as stream,
            parquet.ParquetWriter(stream, schema, compression="zstd") as writer,
            connection.cursor("export", binary=True) as cursor,
        ):
            cursor.itersize = ROWS_A_GROUP
            cursor.execute(sql.SQL(IMAGES).format(model.table), {"collection": collection})
            while rows := cursor.fetchmany(ROWS_A_GROUP):
                columns: list[Any] = [list(column) for column in zip(*rows, strict=True)]
                vectors = _parsed(columns.pop(), model)
                arrays = [pyarrow.array(c, f.type) for c, f in zip(columns, schema, strict=False)]
                arrays.append(pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]))
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
                done += len(rows)
                reporter.progress(done, None)
    return done


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
            described = _description(table, place)
            with connect(url) as connection:
                model = _model(connection, described)
                into_shadow = wants_shadow(connection, model, partial(_count_new, connection, table, model), shadow)
            if into_shadow:
                reporter.say(SHADOW.format(model.name))
            images = skipped = 0
            for name, batches in groupby(_rows(table, model, place), lambda rows: rows[0]["collection"]):
                for kept, left in _collection(url, name, model, batches, into_shadow=into_shadow):
                    images, skipped = images + kept, skipped + left
                    reporter.progress(total + images + skipped, None)
        total += images + skipped
        found.append(ImportResult(model.name, images, skipped))
    return found


def _collection(
    url: str, name: str, model: StoredModel, chunks: Iterator[list[dict[str, Any]]], *, into_shadow: bool
) -> Iterator[tuple[int, int]]:
    """Write chunks of one collection; yields for each how many rows were taken and left out."""
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
            good = [item for row in rows if (item := _item(row)) is not None]
            writer.write(good, Counts([model.name]))
            yield len(good), len(rows) - len(good)
        if writer is not None:
            drop_orphans(writing, writer.replaced)


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
        metadata = json.loads(row["metadata"])
    except (ValueError, RecursionError):
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
    sizes = (row["bytes"] >= 0, row["width"] > 0, row["height"] > 0)
    if storable(file).problem is not None or not all(sizes) or rejection_reason(row["embedding"]) is not None:
        return None
    return Item(
        file, frozenset([0]), replaces=True, sha256=row["sha256"], size=row["bytes"],
        image=ImageFacts(row["pixel_hash"], row["width"], row["height"], row["format"]),
        vectors={0: row["embedding"]},
    )  # fmt: skip


def _rows(table: Any, model: StoredModel, place: str) -> Iterator[list[dict[str, Any]]]:
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
                if "external_id" in row:  # of format 1, where it did not have to be unique
                    row |= {"key": row["path"], "pixel_hash": row["pixel_sha256"]}
                    row["metadata"] = _with_external_id(row["metadata"], row["external_id"])
            for _, some in groupby(rows, lambda row: row["collection"]):
                yield list(some)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{place} breaks off: {error}", hint="export it again; what came before is kept") from error


def _with_external_id(metadata: str, external_id: str | None) -> str:
    return metadata if external_id is None else json.dumps({"external_id": external_id} | json.loads(metadata))


def _schema(pyarrow: Any, model: StoredModel) -> Any:
    kinds = {
        "collection": pyarrow.string(), "root": pyarrow.string(), "key": pyarrow.string(),
        "path": pyarrow.string(), "group_key": pyarrow.string(), "caption": pyarrow.string(),
        "metadata": pyarrow.string(), "modified_at": pyarrow.timestamp("us", "UTC"), "sha256": pyarrow.binary(32),
        "pixel_hash": pyarrow.binary(32), "bytes": pyarrow.int64(), "width": pyarrow.int32(),
        "height": pyarrow.int32(), "format": pyarrow.string(),
    }  # fmt: skip
    number = {"halfvec": pyarrow.float16(), "vector": pyarrow.float32(), "bit": pyarrow.uint8()}[model.storage]
    width = model.dim // 8 if model.storage == "bit" else model.dim
    return pyarrow.schema([*kinds.items(), ("embedding", pyarrow.list_(number, width))])


def _parsed(values: list[bytes], model: StoredModel) -> NDArray[Any]:
    """(n, dim) of what Postgres sends (pgvector: halfvec_send, vector_send; bit_send), each after a head of 4 bytes."""
    kind = {"halfvec": ">f2", "vector": ">f4", "bit": "u1"}[model.storage]
    packed = np.frombuffer(b"".join(value[4:] for value in values), kind)
    return packed.astype(packed.dtype.newbyteorder("=")).reshape(len(values), -1)


def _describe_model(connection: Connection, model: StoredModel) -> dict[str, Any]:
    """What an import needs of a model."""
    canary, reduction = canary_of(connection, model), reduction_of(connection, model)
    kept = asdict(reduction) if reduction else None
    if kept:
        kept["matrix"] = base64.b64encode(kept["matrix"]).decode()
    fields = asdict(model)
    return {"format": FORMAT, "model": {name: fields[name] for name in MODEL_FIELDS},
            "canary": asdict(canary) if canary else None, "reduction": kept}  # fmt: skip


def _description(table: Any, place: str) -> dict[str, Any]:
    described = json.loads((table.schema_arrow.metadata or {}).get(KEY, b"{}"))
    if described.get("format") == 1:  # of versions before the first release
        described["format"] = FORMAT
        described["model"]["index_spec"] = described["model"].pop("index_wanted")
        (described["reduction"] or {}).pop("mean", None)
    if described.get("format") != FORMAT:
        raise SourceError(
            f"{place} is no export of embeddings", hint="make one: pgimgsearch export FILE.parquet --model NAME; "
            "images in Parquet go by: pgimgsearch ingest FILE.parquet --model NAME"
        )  # fmt: skip
    return dict(described)


def _fields(described: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that describe a model, and no others; raises SourceError for a checkpoint that is a path or a URL."""
    try:
        fields = {name: described[name] for name in MODEL_FIELDS}
        checkpoint = str(fields["checkpoint"])
    except (KeyError, TypeError) as error:
        raise SourceError(f"the export does not describe its model: {error}", hint="export it again") from error
    known = {spec.checkpoint for spec in catalog.CATALOG if spec.backend == fields["backend"]}
    if fields["backend"] not in backends() or (checkpoint not in known and PLACE.match(checkpoint)):
        raise SourceError(
            f"the export names a checkpoint that is not loaded: {fields['backend']}, {checkpoint}",
            hint="a model comes from the catalog, from a repository ORGANISATION/NAME, or from --weights",
        )
    return fields


def _model(connection: Connection, described: dict[str, Any]) -> StoredModel:
    """The model of an export as it is stored, added where it is new."""
    fields = _fields(described["model"])
    stored = find_model(connection, fields["name"])
    if stored is None:
        stored = _insert(connection, fields, described)
    if (stored.fingerprint, stored.dim, stored.storage) != (fields["fingerprint"], fields["dim"], fields["storage"]):
        raise DriftError(
            f"model {stored.name} is here with other weights, preprocessing or storage than in the export",
            hint="vectors of both cannot be compared; import into another database, or remove the model here: "
            f"pgimgsearch models remove {stored.name}",
        )
    return stored


def _insert(connection: Connection, fields: dict[str, Any], described: dict[str, Any]) -> StoredModel:
    wanted, reduction = fields.pop("index_spec"), described["reduction"]
    try:
        if reduction:
            reduction["matrix"] = base64.b64decode(reduction["matrix"])
        with connection.transaction():
            stored = insert_model(
                connection,
                fields | {"metric": "hamming" if fields["storage"] == "bit" else "cosine"},
                Canary(**described["canary"]) if described["canary"] else None,
                StoredReduction(**reduction) if reduction else None,
                aliases=suitable_aliases(fields["backend"], has_text=fields["has_text"]),
            )
            connection.execute("select imgsearch.set_index(%s, %s, %s, %s)",
                               [stored.name, wanted["method"], wanted["m"], wanted["ef_construction"]])  # fmt: skip
    except (KeyError, TypeError, ValueError, psycopg.Error) as error:
        if isinstance(error, psycopg.OperationalError):  # the server's, not the export's
            raise
        raise SourceError(f"the export does not describe its model: {error}", hint="export it again") from error
    return get_model(connection, stored.name)


@contextmanager
def _output(target: str) -> Iterator[Any]:
    try:
        if is_url(target):
            store, path = filesystem(target)
            with store.open(path, "wb") as stream:
                yield stream
        else:
            part = Path(f"{target}.part")  # so that an export that breaks off leaves an earlier one as it was
            try:
                with part.open("wb") as file:
                    yield file
                part.replace(target)
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
