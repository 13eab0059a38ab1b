"""What a calibration looks at: edited copies of a sample of images, and pairs of vectors that are no copies."""

from collections.abc import Iterator, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.duplicates.edits import ALL, Edit
from pgimgsearch.duplicates.pixel_copies import is_pixel_copy, reduced
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.read_vectors import read_vectors
from pgimgsearch.embeddings.similarity import similarity, unit_rows
from pgimgsearch.errors import SourceError
from pgimgsearch.models.encoder import SkippedImage
from pgimgsearch.models.runtime.batches import Batches
from pgimgsearch.reporter import Reporter
from pgimgsearch.sources.locations import shown_location
from pgimgsearch.sources.open_image import open_image

HARDEST = 5000  # pairs kept of all that were compared
ROWS = 2000  # vectors multiplied at once with those of the sample
LARGEST = 1024  # pixels of the longer side before an image is edited: models see less
LOCATED = 200  # contents looked up at once
BINS = 128  # whole steps of a PDQ hash

Pairs = NDArray[np.int64]  # (n, 2) content_ids


def representatives(connection: Connection, model: StoredModel, collection: str | None) -> NDArray[np.int64]:
    """A content for each different image that the model has a vector of, in order."""
    row = connection.execute(
        "select array_agg(distinct s.representative_id order by s.representative_id) "
        "from imgsearch.model m, imgsearch._representatives(m, "
        "array(select i.content_id from imgsearch.image i where %s::text is null "
        "or i.collection_id = imgsearch._collection_id(%s))) s where m.model_id = %s",
        [collection, collection, model.model_id],
    ).fetchone()
    return np.array(row[0] if row and row[0] else [], np.int64)


def edited_similarities(
    connection: Connection, model: LoadedModel, contents: Sequence[int], wanted: int, reporter: Reporter
) -> dict[str, NDArray[np.float64]]:
    """Edit -> (n,) similarities of edited copies with their originals, of up to ``wanted`` images that can be read.

    A copy that the model cannot embed, as it has too little detail for a hash, counts as -1.
    """
    network = Batches(model.encoder, model.batch_size)
    rows: list[list[float]] = []
    for content, location in _located(connection, contents):
        if len(rows) == wanted:
            break
        try:
            rows.append(_similarities(model, network, open_image(location), Random(content)))  # noqa: S311
        except Exception:  # noqa: S112  (moved or broken, in whatever way its store says so: another one is taken)
            continue
        reporter.progress(len(rows), wanted)
    if not rows:
        raise SourceError(
            "none of the images can be read from where they were ingested",
            hint="calibrate where the files are, or move the collection's root: imgsearch.collection",
        )
    return {edit.name: column for edit, column in zip(ALL, np.array(rows).T, strict=True)}


def hardest_pairs(
    connection: Connection, model: StoredModel, contents: NDArray[np.int64], sample: NDArray[np.int64]
) -> tuple[Pairs, NDArray[np.float64], NDArray[np.int64]]:
    """The most similar pairs of which one is in ``sample``, (n, 2) and (n,), most similar first; and the counts of all
    products in ``BINS`` equal bins from 0 to 1.
    """
    chosen = [
        (ids[wanted], v[wanted]) for ids, v in read_vectors(connection, model) for wanted in [np.isin(ids, sample)]
    ]
    ids = np.concatenate([ids for ids, _ in chosen])
    queries = unit_rows(np.concatenate([v for _, v in chosen]), model.storage)
    histogram = np.zeros(BINS, np.int64)
    kept_pairs, kept = np.empty((0, 2), np.int64), np.empty(0)
    for others, values in read_vectors(connection, model):
        allowed = np.isin(others, contents)
        for start in range(0, int(allowed.sum()), ROWS):
            part = others[allowed][start : start + ROWS]
            products = queries @ unit_rows(values[allowed][start : start + ROWS], model.storage).T
            similarities = similarity(products, model.storage)
            # each pair once, and nothing with itself
            once = (ids[:, None] < part[None, :]) | ~np.isin(part, ids)[None, :]
            histogram += np.histogram(similarities[once], BINS, (0, 1))[0]
            least = kept.min() if len(kept) >= HARDEST else -1.0
            found = np.nonzero(once & (similarities > least))
            kept_pairs = np.concatenate([kept_pairs, np.stack([ids[found[0]], part[found[1]]], axis=1)])
            kept = np.concatenate([kept, similarities[found]])
            best = np.argsort(-kept, kind="stable")[:HARDEST]
            kept_pairs, kept = kept_pairs[best], kept[best]
    return kept_pairs, kept, histogram


def are_copies(connection: Connection, pairs: Pairs) -> NDArray[np.bool_]:
    """Which pairs are copies whatever the model says: a person accepted them, or their pixels are the same picture's.

    What a person rejected is none, nor are images without contrast, or whose files cannot be read.
    """
    small = _reduced(connection, sorted({int(content) for pair in pairs for content in pair}))
    return np.array(
        [verdict == "accepted" or (verdict is None and a in small and b in small and is_pixel_copy(small[a], small[b]))
         for (a, b), verdict in zip(pairs.tolist(), _verdicts(connection, pairs), strict=True)], bool,
    )  # fmt: skip


def _similarities(model: LoadedModel, network: Batches, original: Image.Image, random: Random) -> list[float]:
    small = original.copy()
    small.thumbnail((LARGEST, LARGEST))
    prepared = [model.encoder.prepare(original)]
    readable = []
    for edit in ALL:
        copy = _prepared(model, edit, small, random)
        readable.append(copy is not None)
        prepared += [copy] if copy is not None else []
    rows = unit_rows(model.storable(network.embed(prepared)), model.stored.storage)
    similar = iter(similarity(rows[1:] @ rows[0], model.stored.storage).tolist())
    return [next(similar) if has else -1.0 for has in readable]


def _prepared(model: LoadedModel, edit: Edit, image: Image.Image, random: Random) -> NDArray[np.generic] | None:
    try:
        return model.encoder.prepare(edit.make(image, random))
    except SkippedImage:
        return None


def _located(connection: Connection, contents: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Contents and where a file of each is; few at a time, as the first may be enough."""
    for start in range(0, len(contents), LOCATED):
        found = image_locations(connection, contents[start : start + LOCATED])
        yield from ((content, location) for content, (_, location) in found.items())


def image_locations(connection: Connection, contents: Sequence[int]) -> dict[int, tuple[int, str]]:
    """Content -> an image of it and where its file is, in the order of ``contents``."""
    rows = connection.execute(
        "select n.content_id, i.image_id, i.path, l.root from unnest(%s::bigint[]) with ordinality as n (content_id, "
        "place) cross join lateral (select * from imgsearch.image i where i.content_id = n.content_id "
        "order by i.image_id limit 1) i "
        "join imgsearch.collection l on l.collection_id = i.collection_id order by n.place",
        [[int(content) for content in contents]],
    ).fetchall()
    return {content: (image, shown_location(path, root)) for content, image, path, root in rows}


def _verdicts(connection: Connection, pairs: Pairs) -> list[str | None]:
    rows = connection.execute(
        "select v.verdict from unnest(%s::bigint[], %s::bigint[]) with ordinality as p (a, b, place) "
        "left join imgsearch.content c on c.content_id = p.a left join imgsearch.content d on d.content_id = p.b "
        "left join imgsearch.duplicate_verdict v on v.pixels_a = least(c.identity, d.identity) "
        "and v.pixels_b = greatest(c.identity, d.identity) order by p.place",
        [pairs[:, 0].tolist(), pairs[:, 1].tolist()],
    ).fetchall()
    return [row[0] for row in rows]


def _reduced(connection: Connection, contents: Sequence[int]) -> dict[int, Image.Image]:
    """The files that can be read, as small as they are compared."""
    found = {}
    for content, (_, location) in image_locations(connection, contents).items():
        try:
            found[content] = reduced(open_image(location))
        except Exception:  # noqa: S112  (no evidence then)
            continue
    return found
