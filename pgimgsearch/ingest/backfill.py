"""Backfill a model: embed images that are stored already, from the files that they were ingested from.

Only embeddings are written, and why there are none: images may come and go meanwhile.
"""

import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

from psycopg import sql
from psycopg.rows import class_row

from pgimgsearch.concurrency import ordered_map, prefetch, stop_signals, worker_pool
from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import Coverage, StoredModel, count_coverage
from pgimgsearch.embeddings.deferred_models import DeferredModels
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.embeddings.registry import get_stored
from pgimgsearch.errors import BusyError, InterruptedRun
from pgimgsearch.indexing.embedding_table import shadow_table
from pgimgsearch.ingest.embed import embed
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.plan import digest
from pgimgsearch.ingest.prepare import prepare
from pgimgsearch.ingest.run_log import record_backfill
from pgimgsearch.ingest.stopwatch import Stopwatch
from pgimgsearch.ingest.throttle import Throttle
from pgimgsearch.ingest.write import EmbeddingWriter, MissingContent
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.runtime.cpu_parallel import cores, passes
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.reporter import SILENT, Reporter
from pgimgsearch.sources.decode import limit_pixels
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits
from pgimgsearch.sources.locations import stored_location
from pgimgsearch.sources.read import read_bytes

CHUNK, SECONDS_PER_CHUNK = 500, 2.0
CONTENTS_PER_PAGE = 2000  # looked up at once, so that no transaction lasts as long as the work

MOST_FILES, SECONDS_A_CONTENT = 8, 60.0  # that are tried for the bytes of one content

FILES = f"""
select c.content_id, c.sha256, array_agg(i.path order by i.image_id) as paths,
       array_agg(i.root order by i.image_id) as roots
from imgsearch.content c cross join lateral (
    select i.image_id, i.path, l.root from imgsearch.image i join imgsearch.collection l using (collection_id)
    where i.content_id = c.content_id order by i.image_id limit {MOST_FILES}) i
where c.content_id = any(%s) group by 1 order by 1
"""  # noqa: S608


def fill_stored(
    url: str, name: str, checkpoint: Checkpoint, placement: Placement, *, max_load: float,
    limits: ImageLimits = DEFAULT_LIMITS, reporter: Reporter = SILENT,
) -> tuple[str, Coverage]:  # fmt: skip
    """Fill a stored model, by its name or an alias; raises BusyError where another session does."""
    with connect(url) as connection:
        stored = get_stored(connection, name)
        if shadow_table(connection, stored) is not None:
            raise BusyError(
                f"the shadow table of {stored.name} holds vectors that are not in use yet",
                hint=f"unless an ingest is running: pgimgsearch index build {stored.name}",
            )
        busy = f"another session fills {stored.name}"
        with locks.exclusive(connection, locks.FILL, stored.model_id, busy):
            request = ModelRequest([stored.name], checkpoint=checkpoint, placement=placement)
            (model,) = open_models(url, request, [], reporter=reporter)
            return stored.name, fill(url, model, max_load=max_load, limits=limits, reporter=reporter)


def fill(
    url: str, model: LoadedModel, *, max_load: float = 1.0, failed_contents: set[int] | None = None,
    limits: ImageLimits = DEFAULT_LIMITS, reporter: Reporter = SILENT,
) -> Coverage:  # fmt: skip
    """Embed every stored content that the model has no vector of, until none is left that can be read.

    New images are picked up too, unless they arrive faster than they are embedded. A file counts only with the bytes
    that were ingested. ``failed_contents`` are not tried, and those that fail are added. Raises InterruptedRun on
    Ctrl-C or SIGTERM: what is finished is kept, and the same call continues from there.
    """
    failed_contents = set() if failed_contents is None else failed_contents
    with ExitStack() as stack:
        reader, writer = stack.enter_context(connect(url)), stack.enter_context(connect(url))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow warns of oddities that it then reads, or fails on with an error
        stopped = stack.enter_context(stop_signals())
        pool = stack.enter_context(worker_pool(cores(), "decode", stopped))
        backfill = _Backfill(reader, writer, model, pool, stopped, max_load, failed_contents, limits, reporter)
        backfill.run()
        covered = count_coverage(reader, model.stored)
        _check_stopped(stopped)
        return covered


def count_missing(connection: Connection, model: StoredModel, contents: Iterable[int]) -> int:
    """How many of these contents are shown by images and have no vector."""
    row = connection.execute(
        sql.SQL(
            "select count(*) from unnest(%s::bigint[]) c where exists (select from imgsearch.image i "
            "where i.content_id = c) and not exists (select from {} e where e.content_id = c)"
        ).format(model.table),
        [list(contents)],
    ).fetchone()
    assert row is not None
    return int(row[0])


class _Backfill:
    """One backfill, in passes over what is missing."""

    def __init__(
        self, reader: Connection, writer: Connection, model: LoadedModel, pool: ThreadPoolExecutor,
        stopped: threading.Event, max_load: float, failed_contents: set[int], limits: ImageLimits,
        reporter: Reporter,
    ) -> None:  # fmt: skip
        self.reader, self.writer, self.model, self.pool, self.stopped = reader, writer, model, pool, stopped
        self.failed_contents, self.limits, self.reporter = failed_contents, limits, reporter
        self.output = EmbeddingWriter(writer, model.stored)
        self.watch, self.counts = Stopwatch(), Counts([model.stored.name])
        parallel = passes(model.encoder.device)
        self.throttle = Throttle(
            max_load, stopped, lambda: sum(stage.seconds for stage in self.watch.stages.values()) / parallel
        )

    def run(self) -> None:
        """Pass until nothing is left, or no fewer contents arrived than in the pass before."""
        status, start = "failed", time.monotonic()
        before = count_coverage(self.reader, self.model.stored)
        self.done, self.total = before.embedded + before.skipped, before.contents
        try:
            found, most = self._pass(), math.inf
            while 0 < found < most:
                found, most = self._pass(), found
            status = "complete"
        except (InterruptedRun, KeyboardInterrupt):
            status = "interrupted"
            raise
        finally:
            if not self.writer.closed:
                record_backfill(
                    self.writer, self.model.stored.name, self.model.encoder, self.counts, self.watch,
                    time.monotonic() - start, status,
                )  # fmt: skip

    def _pass(self) -> int:
        """Embed what is missing, once through; returns how many contents that was."""
        found = 0
        for page in _pages(self.reader, self.model.stored, self.failed_contents):
            _check_stopped(self.stopped)
            found += len(page)
            embedded = _embedded(self.pool, page, self.model, self.limits, self.watch)
            with closing(prefetch(embedded, 8, "fill", self.stopped)) as finished:
                for chunk in _chunks(_throttled(finished, self.throttle)):
                    self._write(chunk)
                    _check_stopped(self.stopped)
        _check_stopped(self.stopped)
        return found

    def _write(self, chunk: list[MissingContent]) -> None:
        self.output.write(chunk)
        for one in chunk:
            self.counts.add_item(one.item)
        self.failed_contents.update(one.content_id for one in chunk if one.item.failure)
        self.done += len(chunk)
        self.reporter.progress(self.done, self.total)


def _check_stopped(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise InterruptedRun(hint="run the same command again to continue")


def _throttled(finished: Iterable[MissingContent], throttle: Throttle) -> Iterator[MissingContent]:
    for one in finished:
        yield one
        throttle.wait()


def _chunks(finished: Iterable[MissingContent]) -> Iterator[list[MissingContent]]:
    """What is written at once: enough for a COPY, and never so much that a kill costs minutes."""
    chunk: list[MissingContent] = []
    last = time.monotonic()
    for one in finished:
        chunk.append(one)
        if len(chunk) >= CHUNK or time.monotonic() - last > SECONDS_PER_CHUNK:
            yield chunk
            chunk, last = [], time.monotonic()
    if chunk:
        yield chunk


def _pages(connection: Connection, model: StoredModel, failed_contents: set[int]) -> Iterator[list[MissingContent]]:
    """Contents that the model has neither a vector of nor a reason to skip, once through, by their number."""
    after = 0
    while True:
        rows = connection.execute(
            "select k from imgsearch.model m, imgsearch._missing_contents(m, %s, %s) k where m.model_id = %s",
            [after, CONTENTS_PER_PAGE, model.model_id],
        ).fetchall()
        if not rows:
            return
        after = max(row[0] for row in rows)
        wanted = [row[0] for row in rows if row[0] not in failed_contents]
        page = connection.cursor(row_factory=class_row(MissingContent)).execute(FILES, [wanted]).fetchall()
        if page:
            yield page


def _embedded(
    pool: ThreadPoolExecutor, page: list[MissingContent], model: LoadedModel, limits: ImageLimits, watch: Stopwatch
) -> Generator[MissingContent, None, None]:
    """Read and decode in a pool, embed in batches; in order."""
    limit_pixels(limits.max_pixels)
    read = ordered_map(pool, lambda one: _read(one, model, limits), iter(page), 2 * cores())
    waiting: deque[MissingContent] = deque()

    def items() -> Iterator[Item]:
        for one in read:
            waiting.append(one)
            yield one.item

    with closing(embed(items(), DeferredModels.of([model]), watch)) as embedded:
        for _ in embedded:
            yield waiting.popleft()


def _read(one: MissingContent, model: LoadedModel, limits: ImageLimits) -> MissingContent:
    """Prepare the first of its files that still has the ingested bytes; what rows say of its size lifts no limit."""
    item = one.item
    end = time.monotonic() + SECONDS_A_CONTENT
    for path, root in zip(one.paths, one.roots, strict=True):
        if item.failure is not None and time.monotonic() > end:
            break
        item.failure = None
        try:
            item.data = read_bytes(stored_location(path, root), limits.max_bytes)
            if digest(item).sha256 != one.sha256:
                raise ValueError("the file has other bytes than those that were ingested")
            prepare(item, DeferredModels.of([model]), limits)
        except Exception as error:  # a broken or vanished file never stops a run; a copy of it may exist
            item.fail(error)
        if item.failure is None:
            break
    return one
