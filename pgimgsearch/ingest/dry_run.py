"""A dry run: what an ingest would do, without doing it."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import Session
from pgimgsearch.embeddings import registry as register
from pgimgsearch.indexing import shadow_table as aside
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.plan import Planner
from pgimgsearch.ingest.run import Options, Refine, Report
from pgimgsearch.sources.source import Source


def preview(
    url: str, source: Source, names: Sequence[str], options: Options, *, refine: Refine = lambda files: files
) -> Report:
    """What ``ingest`` would do by names, sizes and times, without decoding, loading or writing anything.

    A model that is not stored yet would embed every file.
    """
    start = time.perf_counter()
    counts = Counts(list(names))
    with connect(url) as connection, connection.transaction(force_rollback=True):
        found = [find_stored(connection, name) for name in names]
        collection_id, collection, root = store.open_collection(
            connection, options.collection, source.root, source.default_collection
        )
        found_files = itertools.islice(refine(source.files(root)), options.limit)
        files = [replace(file, data=None) for file in found_files]
        for position, model in enumerate(found):
            own = Counts([names[position]])
            there = aside.find(connection, model) if model else None
            planner = Planner(
                Session(connection), collection_id, [model] if model else [], own, options.retry_failed,
                beside={there.model_id: there} if there else {},
            )  # fmt: skip
            items = planner.plan(iter(files)) if model else (Item(f, frozenset([0])) for f in files)
            for item in items:
                own.add(0, "failed" if item.file.problem else "embedded")
            for outcome, number in own.by_model[names[position]].items():
                counts.add(position, outcome, number)
    return Report(source.label, collection, counts.as_dict(), time.perf_counter() - start, {}, "dry run")


def find_stored(connection: Connection, name: str) -> StoredModel | None:
    """A stored model, if it is; raises ModelError for a name that nobody knows."""
    base, _, last = name.rpartition("@")
    if base and last.isdigit():
        return store.find_model(connection, f"{register.look_up(connection, base)[1].name}@{last}")
    return register.look_up(connection, name)[0]
