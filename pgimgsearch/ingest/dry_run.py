"""A dry run: what an ingest would do, without doing it."""

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256

from pgimgsearch.database.collections import open_collection
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.reconnect import Session
from pgimgsearch.embeddings.registry import find_stored
from pgimgsearch.errors import SourceError
from pgimgsearch.indexing.embedding_table import shadow_table
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.plan import Planner
from pgimgsearch.ingest.prune import check_removal, count_removal, spare_excluded, unseen_images
from pgimgsearch.ingest.run import Options, Refine, Report, check_options
from pgimgsearch.sources.limits import DEFAULT_LIMITS
from pgimgsearch.sources.locations import is_url
from pgimgsearch.sources.read import content
from pgimgsearch.sources.source import ScannedFile, Source


def dry_run(
    url: str, source: Source, names: Sequence[str], options: Options, *, refine: Refine = lambda files: files
) -> Report:
    """What ``ingest`` would do by names, sizes and times, without decoding, loading or writing anything.

    A model that is not stored yet would embed every file.
    """
    check_options(source, options)
    start = time.perf_counter()
    counts = Counts(list(names))
    with connect(url) as connection, connection.transaction(force_rollback=True):
        found = [find_stored(connection, name) for name in names]
        collection_id, collection, root = open_collection(
            connection, options.collection, source.root, source.default_collection
        )
        scanned = itertools.islice(refine(source.files(root)), options.limit)
        files = [replace(file, data=None) for file in scanned]
        for position, model in enumerate(found):
            own = Counts([names[position]])
            shadow = shadow_table(connection, model) if model else None
            planner = Planner(
                Session(connection), collection_id, [model] if model else [], own, options.retry_failed, options.rehash,
                shadows={model.model_id: shadow} if model and shadow else {},
            )  # fmt: skip
            items = planner.plan(iter(files)) if model else (Item(f, frozenset([0])) for f in files)
            for item in items:
                own.add(0, "failed" if item.file.problem else "embedded")
            for outcome, number in own.by_model[names[position]].items():
                counts.add(position, outcome, number)
        told = source.left_out.told()
        if options.prune:
            told += _removal(connection, collection_id, files, source, root)
    return Report(source.label, collection, counts.as_dict(), time.perf_counter() - start, {}, "dry run", left_out=told)


def _removal(
    connection: Connection, collection_id: int, files: Sequence[ScannedFile], source: Source, root: str
) -> list[str]:  # fmt: skip
    """What --prune would delete, and how many images it would rename."""
    if (unread := next((file for file in files if file.unlisted), None)) is not None:
        return [f"--prune would be refused: {unread.location} could not be read ({unread.problem})"]
    planner = Planner(Session(connection), collection_id, [], Counts([]), remember_seen=True)
    for _ in planner.plan(iter(files)):
        pass
    spare_excluded(planner, source, root)
    found = count_removal(planner, source, root, _new_contents(planner, source, root, files))
    told = [f"--prune would delete {found.told(source)}" if found.gone else "--prune would delete nothing"]
    told += [f"{found.renamed} images are renamed"] if found.renamed else []
    try:
        check_removal(planner, source, root, found)
    except SourceError as error:
        told += [str(error).replace("nothing was pruned", "without --prune-all nothing would be pruned", 1)]
    return told


def _new_contents(planner: Planner, source: Source, root: str, files: Sequence[ScannedFile]) -> Counter[bytes]:
    """The sha256 of local files under new names, of those that are as large as one that is gone."""
    sizes = {size for _, _, size in unseen_images(planner, source, root)}
    if not sizes:
        return Counter()
    rows = planner.connection.execute(
        "select s.key from seen s where not exists (select from imgsearch.image i "
        "where i.collection_id = %s and i.key = s.key)", [planner.collection_id]
    ).fetchall()  # fmt: skip
    names = {key for (key,) in rows}
    found: Counter[bytes] = Counter()
    for file in files:
        if file.key in names and file.size in sizes and not is_url(file.location):
            with suppress(OSError, ValueError):  # the run itself says what is wrong
                found[sha256(content(file, DEFAULT_LIMITS.max_bytes)).digest()] += 1
    return found
