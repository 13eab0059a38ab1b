"""One ingest run: the stages joined by bounded queues, each timed, and its books kept in the database."""

import itertools
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace

import psycopg

from pgimgsearch.concurrency import batched, ordered_map, prefetch, stop_signals
from pgimgsearch.database import models as store
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.reconnect import session
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import UsageError
from pgimgsearch.ingest import load_target as beside
from pgimgsearch.ingest import run_log as books
from pgimgsearch.ingest.embed import by_network, embed
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.plan import Planner, digest
from pgimgsearch.ingest.skip_duplicates import Door
from pgimgsearch.ingest.stopwatch import Stage, Stopwatch
from pgimgsearch.ingest.write import Writer, drop_orphans
from pgimgsearch.models.encoder import SkippedPicture
from pgimgsearch.models.runtime.cpu_parallel import cores
from pgimgsearch.sources import read as fetch
from pgimgsearch.sources.decode import decode, limit_pixels
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits
from pgimgsearch.sources.memory_budget import room
from pgimgsearch.sources.source import ScannedFile, Source

FILES_A_CHUNK, SECONDS_A_CHUNK = 1000, 1.0
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
    retry_failed: bool = False
    skip_duplicates: bool = False
    limits: ImageLimits = DEFAULT_LIMITS
    aside: frozenset[str] = frozenset()  # the models whose rows go beside the live table, until ``finish``


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did. ``counts`` is model -> outcome -> files; ``stages`` what each stage did."""

    source: str
    collection: str
    counts: dict[str, dict[str, int]]
    seconds: float
    stages: dict[str, Stage]
    status: str
    pruned: int = 0
    left_out: int = 0


def ingest(
    url: str, source: Source, models: Sequence[LoadedModel], options: Options,
    *, refine: Refine = lambda files: files, progress: Callable[[int], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Bring a source into the database for all models. ``refine`` adds captions and the like to the files.

    A connection that is lost is opened again, and ``tell`` hears of it; raises DatabaseError where that takes too
    long: what was committed is kept. On Ctrl-C or SIGTERM, what is finished is written and the report's status is
    ``interrupted``.
    """
    if options.prune and options.limit is not None:
        raise UsageError("--prune needs the whole source, and --limit cuts it", hint="leave one of them out")
    if options.prune and options.skip_duplicates:
        raise UsageError(
            "--prune with --skip-duplicates would remove what was renamed: the new name is refused, the old one gone",
            hint="run one after the other",
        )
    if options.prune and not source.whole:
        raise UsageError(
            f"--prune would remove what {source.label} does not name", hint="prune folders, prefixes, lists or queries"
        )
    start = time.perf_counter()
    with ExitStack() as stack:
        stopped = stack.enter_context(stop_signals())
        reader, writer = (stack.enter_context(session(url, stopped, tell)) for _ in range(2))
        stored = [model.stored for model in models]
        counts, watch = Counts([model.name for model in stored]), Stopwatch()
        collection_id, collection, root = store.open_collection(
            writer.connection, options.collection, source.root, source.default_collection
        )
        books.lock(writer, collection_id, collection)
        there = beside.join(writer, stored, options.aside)
        planner = Planner(reader, collection_id, stored, counts, options.retry_failed, options.prune, there)
        files = _checked(itertools.islice(refine(source.files(root)), options.limit), planner, stopped, watch, progress)
        run_id = books.begin(writer.connection, collection_id, source.label, models)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow warns of oddities that it then reads, or fails on with an error
        pruned = 0
        sink = Writer(writer, collection_id, run_id, _targets(stored, there, options))
        try:
            door = Door(writer, stored) if options.skip_duplicates else None
            _work(sink, planner, door, files, models, options, watch, progress, stopped)
            status = "interrupted" if stopped.is_set() else "complete"
            drop_orphans(writer, sink.replaced)
            if status == "complete":
                books.settle(writer, collection_id, run_id, [part.path(root) for part in source.parts])
                gone = _prune(planner, source, root) if options.prune else []
                drop_orphans(writer, gone)
                pruned = len(gone)
        except BaseException:
            with suppress(psycopg.OperationalError):  # the server is gone; the next run closes this one
                books.end(writer.connection, run_id, "failed", counts, watch)
            raise
        writer.run(lambda: books.end(writer.connection, run_id, status, counts, watch))
    return Report(
        source.label, collection, counts.as_dict(), time.perf_counter() - start, watch.stages, status, pruned,
        source.left_out[0],
    )  # fmt: skip


def part(
    url: str, collection_id: int, models: Sequence[LoadedModel], files: Iterator[ScannedFile], options: Options,
    counts: Counts, watch: Stopwatch,
) -> None:  # fmt: skip
    """Bring some files of a run into the database, whose lock and books others keep."""
    stored = [model.stored for model in models]
    with session(url) as reader, session(url) as writer:
        there = beside.join(writer, stored, options.aside)
        planner = Planner(reader, collection_id, stored, counts, options.retry_failed, beside=there)
        sink = Writer(writer, collection_id, None, _targets(stored, there, options))
        _work(sink, planner, None, files, models, options, watch, lambda _: None, threading.Event())


def _targets(stored: Sequence[StoredModel], there: Mapping[int, StoredModel], options: Options) -> list[StoredModel]:
    return [there[model.model_id] if model.name in options.aside else model for model in stored]


def _work(
    writer: Writer, planner: Planner, door: Door | None, files: Iterator[ScannedFile], models: Sequence[LoadedModel],
    options: Options, watch: Stopwatch, progress: Callable[[int], None], stopped: threading.Event,
) -> None:  # fmt: skip
    """Run the stages, and write in the calling thread, until the files end or ``stopped`` is set."""
    finished: list[Item] = []
    with (
        ThreadPoolExecutor(options.workers, thread_name_prefix="decode") as pool,
        closing(_stages(pool, planner, files, models, options, watch)) as items,
    ):
        last = time.monotonic()
        for item in items:
            finished.append(item)
            if stopped.is_set():
                break
            if len(finished) >= FILES_A_CHUNK or time.monotonic() - last > SECONDS_A_CHUNK:
                _write(writer, planner, door, finished, watch)
                progress(planner.counts.done())
                finished, last = [], time.monotonic()
        _write(writer, planner, door, finished, watch)
        progress(planner.counts.done())


def _stages(
    pool: ThreadPoolExecutor, planner: Planner, files: Iterator[ScannedFile], models: Sequence[LoadedModel],
    options: Options, watch: Stopwatch,
) -> Generator[Item, None, None]:  # fmt: skip
    """Plan, read and decode in one thread with a pool, embed in a second; this generator runs in a third."""
    limit_pixels(options.limits.max_pixels)

    def read(item: Item) -> Item:
        if item.failure is None:
            with watch.time("read"):
                file, item.file = item.file, replace(item.file, data=None)  # the bytes go on in the item alone
                try:
                    item.data = fetch.content(file, options.limits.max_bytes)
                    digest(item)
                except Exception as error:  # a broken or vanished file never stops a run
                    item.fail(error)
        return item

    def decoded(item: Item) -> Item:
        if item.data:
            with watch.time("decode"):
                prepare(item, models, options.limits)
        return item

    ahead = options.workers * 2
    read_items = ordered_map(pool, read, planner.plan(files), ahead)
    fresh = itertools.chain.from_iterable(
        planner.deduplicate(batch) for batch in batched(read_items, 32, lambda item: len(item.data), BYTES_IN_FLIGHT)
    )
    ready = prefetch(ordered_map(pool, decoded, fresh, ahead), 2 * min(m.batch_size for m in models), "prepare")
    yield from prefetch(embed(ready, models, watch), FILES_IN_QUEUE, "embed")


def prepare(item: Item, models: Sequence[LoadedModel], limits: ImageLimits) -> None:
    """Decode once, prepare for every network that is wanted, and let the pixels go."""
    try:
        with room().share() as take:
            _prepare(item, models, limits, take)
    except Exception as error:  # hostile bytes raise anything; MemoryError included
        item.prepared.clear()
        item.fail(error)
    item.data = b""


def _prepare(item: Item, models: Sequence[LoadedModel], limits: ImageLimits, reserve: Callable[[int], None]) -> None:
    image, item.picture = decode(item.data, limits, reserve)
    for number, positions in enumerate(by_network(models)):
        wanted = [position for position in positions if position in item.wanted - item.reused]
        if not wanted:
            continue
        try:
            item.prepared[number] = models[wanted[0]].encoder.prepare(image)
        except SkippedPicture as why:
            item.reasons |= dict.fromkeys(wanted, str(why))


def _write(writer: Writer, planner: Planner, door: Door | None, items: list[Item], watch: Stopwatch) -> None:
    if not items:
        return
    for item in items:
        item.resolve_twin()
    if door is not None:
        with watch.time("compare", len(items)):
            door.check(items)
    for item in items:
        planner.counts.add_item(item)
    try:
        with watch.time("write", len(items)):
            writer.write(items, planner.counts)
    except BaseException:  # nothing of the chunk is stored, so none of it counts
        for item in items:
            planner.counts.add_item(item, -1)
        raise
    for item in items:
        planner.forget(item)


def _checked(
    files: Iterator[ScannedFile], planner: Planner, stopped: threading.Event, watch: Stopwatch,
    progress: Callable[[int], None],
) -> Iterator[ScannedFile]:  # fmt: skip
    """The files until ``stopped`` is set; to prune with a folder that could not be read would remove all of it."""
    for number in itertools.count():
        start = time.perf_counter()
        file = next(files, None)
        watch.add("scan", time.perf_counter() - start, int(file is not None))
        if file is None or stopped.is_set():
            return
        if file.unlisted and planner.remember:
            raise UsageError(
                f"cannot prune: {file.location} could not be read ({file.problem})",
                hint="mend its permissions, or run without --prune",
            )
        if number % FILES_A_CHUNK == 0:  # files that need no work never reach the writer
            progress(planner.counts.done())
        yield file


def _prune(planner: Planner, source: Source, root: str) -> list[int]:
    return planner.prune(None if source.scope is None else beside.prefix(source, root))
