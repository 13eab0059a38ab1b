"""One ingest run: stages joined by bounded queues, each timed, and a log in the database."""

import itertools
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from pgimgsearch.concurrency import batched, ordered_map, prefetch, stop_signals, worker_pool
from pgimgsearch.database.collections import open_collection
from pgimgsearch.database.contents import orphans
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import session
from pgimgsearch.embeddings.deferred_models import DeferredModels
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.indexing.embedding_table import EmbeddingTable
from pgimgsearch.ingest.away import Away
from pgimgsearch.ingest.embed import embed
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.load_target import join_shadows
from pgimgsearch.ingest.plan import Planner, digest
from pgimgsearch.ingest.prepare import prepare
from pgimgsearch.ingest.prune import prune
from pgimgsearch.ingest.run_log import check_models, end_run, lock_collection, settle_shards, start_run
from pgimgsearch.ingest.skip_duplicates import DuplicateFilter
from pgimgsearch.ingest.stopwatch import Stage, Stopwatch
from pgimgsearch.ingest.write import RemovedContents, Writer, drop_orphans, is_about_rows
from pgimgsearch.models.runtime.cpu_parallel import cores
from pgimgsearch.reporter import SILENT, Reporter
from pgimgsearch.sources.decode import limit_pixels
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits
from pgimgsearch.sources.locations import is_url
from pgimgsearch.sources.read import EmptyFile, TooManyBytes, content
from pgimgsearch.sources.source import ScannedFile, Source

FILES_PER_CHUNK, SECONDS_PER_CHUNK = 1000, 1.0
FILES_IN_QUEUE = 256
BYTES_IN_FLIGHT = 64 << 20

Refine = Callable[[Iterator[ScannedFile]], Iterator[ScannedFile]]


@dataclass(frozen=True, slots=True)
class Options:
    """How a run goes."""

    collection: str | None = None
    workers: int = field(default_factory=cores)
    limit: int | None = None
    prune: bool = False
    prune_all: bool = False  # however many
    retry_failed: bool = False
    rehash: bool = False
    exif: bool = True  # what cameras wrote is metadata
    skip_duplicates: bool = False
    limits: ImageLimits = DEFAULT_LIMITS
    shadow: frozenset[str] = frozenset()  # models whose rows go to their shadow tables, until ``after_load``


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did, in ``seconds`` without loading networks.

    ``counts`` is model -> outcome -> files; ``stages`` what each stage did.
    """

    source: str
    collection: str
    counts: dict[str, dict[str, int]]
    seconds: float
    stages: dict[str, Stage]
    status: str
    pruned: int = 0
    left_out: Sequence[str] = ()


def ingest(
    url: str, source: Source, models: Sequence[LoadedModel] | DeferredModels, options: Options,
    *, refine: Refine = lambda files: files, reporter: Reporter = SILENT,
) -> Report:  # fmt: skip
    """Ingest a source for all models. ``refine`` adds captions and other attributes to its files.

    Deferred models are loaded if an image needs them.

    A lost connection is opened again; raises DatabaseError where that takes too long: what was committed is kept. On
    Ctrl-C or SIGTERM, what is finished is written and the report's status is ``interrupted``.
    """
    check_options(source, options)
    models = models if isinstance(models, DeferredModels) else DeferredModels.of(models)
    start, loaded_before = time.perf_counter(), models.seconds  # by a run of another source, with the same models
    with ExitStack() as stack:
        stopped = stack.enter_context(stop_signals())
        reader, writer = (stack.enter_context(session(url, stopped, reporter)) for _ in range(2))
        stored = models.stored
        counts, watch = Counts([model.name for model in stored]), Stopwatch()
        collection_id, collection, root = open_collection(
            writer.connection, options.collection, source.root, source.default_collection
        )
        lock_collection(writer, collection_id, collection)
        shadows = join_shadows(writer, stored, options.shadow)
        planner = Planner(
            reader, collection_id, stored, counts, options.retry_failed, options.rehash, options.exif, options.prune,
            shadows,
        )  # fmt: skip
        scanned = itertools.islice(refine(source.files(root)), options.limit)
        files = _checked(scanned, planner, stopped, watch, reporter)
        run_id = start_run(writer.connection, collection_id, source.label, stored)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow warns of oddities that it then reads, or fails on with an error
        pruned = 0
        tables = _tables(stored, shadows, options)
        output = Writer(writer, collection_id, run_id, stored, tables, exif=options.exif)
        try:
            duplicates = DuplicateFilter(writer, stored, collection) if options.skip_duplicates else None
            _work(output, planner, duplicates, files, models, options, watch, reporter, stopped, Away(source))
            status = "interrupted" if stopped.is_set() else "complete"
            if models.seconds > loaded_before:
                watch.add("load", models.seconds - loaded_before, 0)
            drop_orphans(writer, output.replaced)
            if status == "complete":
                settle_shards(writer, collection_id, run_id, [part.path(root) for part in source.parts])
                gone = []
                if options.prune:
                    gone = prune(planner, source, root, run_id, anyway=options.prune_all, reporter=reporter)
                    drop_orphans(writer, {*gone, *orphans(writer.connection)})
                pruned = len(gone)
        except BaseException as error:
            with suppress(psycopg.OperationalError):  # the server is gone; the next run closes this one
                end_run(writer.connection, run_id, "failed", counts, watch, models.loaded or [])
                check_models(writer.connection, stored, error)
            raise
        writer.run(lambda: end_run(writer.connection, run_id, status, counts, watch, models.loaded or []))
    seconds = time.perf_counter() - start - (models.seconds - loaded_before)
    return Report(
        source.label, collection, counts.as_dict(), seconds, watch.stages, status, pruned,
        [*source.left_out.told(), *planner.oddities.told()],
    )  # fmt: skip


def check_options(source: Source, options: Options) -> None:
    """Raise UsageError for options that would delete what they must not."""
    if options.prune and options.limit is not None:
        raise UsageError("--prune needs the whole source, and --limit cuts it", hint="leave one of them out")
    if options.prune and options.skip_duplicates:
        raise UsageError(
            "--prune with --skip-duplicates would delete renamed images: the new name is rejected, the old one gone",
            hint="run one after the other",
        )
    if options.prune and not source.whole:
        raise UsageError(
            f"--prune would delete what {source.label} does not name", hint="prune folders, prefixes, lists or queries"
        )


def part(
    url: str, collection_id: int, models: Sequence[LoadedModel], files: Iterator[ScannedFile], options: Options,
    counts: Counts, watch: Stopwatch,
) -> None:  # fmt: skip
    """Ingest some files of a run whose lock and log are kept elsewhere."""
    stored = [model.stored for model in models]
    with session(url) as reader, session(url) as writer:
        shadows = join_shadows(writer, stored, options.shadow)
        planner = Planner(
            reader, collection_id, stored, counts, options.retry_failed, options.rehash, options.exif, shadows=shadows
        )
        tables = _tables(stored, shadows, options)
        output = Writer(writer, collection_id, None, stored, tables, exif=options.exif)
        _work(output, planner, None, files, DeferredModels.of(models), options, watch, SILENT, threading.Event(),
              Away(None))  # fmt: skip


def _tables(
    stored: Sequence[StoredModel], shadows: Mapping[int, EmbeddingTable], options: Options
) -> list[sql.Identifier]:
    return [shadows[model.model_id].identifier if model.name in options.shadow else model.table for model in stored]


def _work(
    writer: Writer, planner: Planner, duplicates: DuplicateFilter | None, files: Iterator[ScannedFile],
    models: DeferredModels, options: Options, watch: Stopwatch, reporter: Reporter, stopped: threading.Event,
    away: Away,
) -> None:  # fmt: skip
    """Run the stages, and write in the calling thread, until the files end or ``stopped`` is set."""
    finished: list[Item] = []
    with (
        worker_pool(options.workers, "decode", stopped) as pool,
        closing(_stages(pool, planner, files, models, options, watch, stopped)) as items,
    ):
        last = time.monotonic()
        for item in items:
            finished.append(item)
            if away.sees(item):
                break
            if len(finished) >= FILES_PER_CHUNK or time.monotonic() - last > SECONDS_PER_CHUNK:
                _write(writer, planner, duplicates, finished, watch)
                reporter.progress(planner.counts.done(), None)
                finished, last = [], time.monotonic()
        _write(writer, planner, duplicates, finished, watch)
        reporter.progress(planner.counts.done(), None)
        away.check()


def _stages(
    pool: ThreadPoolExecutor, planner: Planner, files: Iterator[ScannedFile],
    models: DeferredModels, options: Options, watch: Stopwatch, stopped: threading.Event,
) -> Generator[Item, None, None]:  # fmt: skip
    """Plan, read and decode in one thread with a pool, embed in a second; this generator runs in a third."""
    limit_pixels(options.limits.max_pixels)

    def read(item: Item) -> Item:
        if item.failure is None:
            with watch.time("read"):
                file, item.file = item.file, replace(item.file, data=None)  # the bytes go on in the item alone
                try:
                    item.data = content(file, options.limits.max_bytes)
                    digest(item)
                except Exception as error:  # a broken or vanished file never stops a run
                    lasting = isinstance(error, TooManyBytes | EmptyFile) and not is_url(file.location)
                    item.fail(error, lasting=lasting)
        return item

    def decoded(item: Item) -> Item:
        if item.data:
            start = time.perf_counter()
            waited = prepare(item, models, options.limits)
            watch.add("decode", time.perf_counter() - start - waited, 1)
        return item

    ahead = options.workers * 2
    read_items = ordered_map(pool, read, planner.plan(files), ahead)
    fresh = itertools.chain.from_iterable(
        planner.deduplicate(batch) for batch in batched(read_items, 32, lambda item: len(item.data), BYTES_IN_FLIGHT)
    )
    yield from prefetch(
        embed(ordered_map(pool, decoded, fresh, ahead), models, watch), FILES_IN_QUEUE, "embed", stopped
    )


def _write(
    writer: Writer, planner: Planner, duplicates: DuplicateFilter | None, items: list[Item], watch: Stopwatch
) -> None:
    if not items:
        return
    for item in items:
        item.resolve_twin()
        planner.oddities.add(item)
    if duplicates is not None:
        with watch.time("compare", len(items)):
            duplicates.check(items)
    with watch.time("write", len(items)):
        _store(writer, planner, items)


def _store(writer: Writer, planner: Planner, items: list[Item]) -> None:
    """Write and count a chunk; of one that the database refuses, one half after the other, down to the row."""
    for item in items:
        planner.counts.add_item(item)
    try:
        writer.write(items, planner.counts)
    except BaseException as error:  # nothing of the chunk is stored, so none of it counts
        for item in items:
            planner.counts.add_item(item, -1)
        if isinstance(error, RemovedContents):
            for item in error.items:
                item.fail(error, lasting=False)
            _store(writer, planner, items)
            return
        if not is_about_rows(error) or all(item.failure for item in items):
            raise
        if len(items) == 1:
            items[0].refuse(error)
            _store(writer, planner, items)
        else:
            half = len(items) // 2
            _store(writer, planner, items[:half])
            for item in items[half:]:
                item.resolve_twin()
            _store(writer, planner, items[half:])
        return
    for item in items:
        planner.forget(item)


def _checked(
    files: Iterator[ScannedFile], planner: Planner, stopped: threading.Event, watch: Stopwatch, reporter: Reporter
) -> Iterator[ScannedFile]:  # fmt: skip
    """The files until ``stopped`` is set; pruning with a folder that could not be read would delete all of it."""
    for number in itertools.count():
        start = time.perf_counter()
        file = next(files, None)
        watch.add("scan", time.perf_counter() - start, int(file is not None))
        if file is None or stopped.is_set():
            return
        if file.unlisted and planner.remember_seen:
            raise SourceError(
                f"cannot prune: {file.location} could not be read ({file.problem})",
                hint="mend it, or run without --prune",
            )
        if number % FILES_PER_CHUNK == 0:  # files that need no work never reach the writer
            reporter.progress(planner.counts.done(), None)
        yield file
