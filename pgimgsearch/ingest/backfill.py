"""Fill a model: embed what is stored already, from the files that it was ingested from.

Only embeddings are written, and why there are none: images come and go meanwhile as those who ingest want it.
"""

import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

from psycopg import sql
from psycopg.rows import class_row

from pgimgsearch.concurrency import ordered_map, prefetch, stop_signals
from pgimgsearch.database import coverage, locks
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.coverage import Coverage
from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings import open_models as opening
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import BusyError, InterruptedRun
from pgimgsearch.indexing import shadow_table as aside
from pgimgsearch.ingest.embed import embed
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.keep import Keeper, Lacking
from pgimgsearch.ingest.plan import digest
from pgimgsearch.ingest.run import prepare
from pgimgsearch.ingest.stopwatch import Stopwatch
from pgimgsearch.ingest.throttle import Pace
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.runtime.cpu_parallel import cores, passes
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.sources import read as fetch
from pgimgsearch.sources.decode import limit_pixels
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits
from pgimgsearch.sources.source import location_of

CHUNK, SECONDS_A_CHUNK = 500, 2.0
CONTENTS_A_PAGE = 2000  # looked up at once, so that no transaction lasts as long as the work

Progress = Callable[[int, int | None], None]

FILES = """
select c.content_id, c.sha256, c.bytes, c.width::bigint * c.height as pixels,
       array_agg(i.path order by i.image_id) as paths, array_agg(l.root order by i.image_id) as roots
from imgsearch.content c join imgsearch.image i using (content_id) join imgsearch.collection l using (collection_id)
where c.content_id = any(%s) group by 1 order by 1
"""


def fill_stored(
    url: str, name: str, checkpoint: Checkpoint, placement: Placement, *, max_load: float, tell: Callable[[str], None],
    progress: Progress,
) -> tuple[str, Coverage]:  # fmt: skip
    """Fill a stored model, by its name or an alias; raises BusyError where another session does."""
    with connect(url) as connection:
        stored = store.get_model(connection, name)
        if aside.find(connection, stored) is not None:
            raise BusyError(
                f"vectors of {stored.name} lie beside its table, and are not in use yet",
                hint=f"unless an ingest is still at it: pgimgsearch index build {stored.name}",
            )
        with locks.alone(connection, locks.FILL, stored.model_id, f"another session fills {stored.name}"):
            wish = opening.Wish([stored.name], checkpoint=checkpoint, placement=placement)
            (model,) = opening.open_models(url, wish, [], tell=tell)
            return stored.name, fill(url, model, progress, max_load=max_load)


def fill(
    url: str, model: LoadedModel, progress: Progress, *, max_load: float = 1.0, given_up: set[int] | None = None
) -> Coverage:
    """Embed every stored content that the model has no vector of, until there is none left that can be read.

    What arrives meanwhile is picked up too, unless it arrives faster than it is embedded. A file counts only with the
    bytes that were ingested. ``given_up`` are contents not to be tried, and those that failed are added. Raises
    InterruptedRun on Ctrl-C or SIGTERM: what is finished is kept, and the same call goes on from there.
    """
    given_up = set() if given_up is None else given_up
    with ExitStack() as stack:
        reader, writer = stack.enter_context(connect(url)), stack.enter_context(connect(url))
        for connection in (reader, writer):
            connection.execute("set statement_timeout = 0")  # to count many images takes its time
        pool = stack.enter_context(ThreadPoolExecutor(cores(), thread_name_prefix="decode"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow warns of oddities that it then reads, or fails on with an error
        stopped = stack.enter_context(stop_signals())
        keep, watch, counts = Keeper(writer, model.stored), Stopwatch(), Counts([model.stored.name])
        start = time.monotonic()
        at_once = passes(model.encoder.device)
        pace = Pace(max_load, stopped, lambda: sum(stage.seconds for stage in watch.stages.values()) / at_once)
        before = coverage.count(reader, model.stored)
        done = before.embedded + before.skipped

        def once() -> int:
            nonlocal done
            found = 0
            for page in _pages(reader, model.stored, given_up):
                _go_on(stopped)
                found += len(page)
                with closing(_embedded(pool, page, model, watch)) as finished:
                    for chunk in _chunks(_paced(finished, pace)):
                        keep.write(chunk)
                        for one in chunk:
                            counts.add_item(one.item)
                        given_up.update(one.content_id for one in chunk if one.item.failure)
                        done += len(chunk)
                        progress(done, before.contents)
                        _go_on(stopped)
            _go_on(stopped)
            return found

        status = "failed"
        try:
            found, most = once(), math.inf
            while 0 < found < most:  # what came meanwhile, as long as that gets less
                found, most = once(), found
            status = "complete"
        except (InterruptedRun, KeyboardInterrupt):
            status = "interrupted"
            raise
        finally:
            if not writer.closed:
                keep.record(model.encoder, counts, watch, time.monotonic() - start, status)
        covered = coverage.count(reader, model.stored)
        _go_on(stopped)
        return covered


def still_lacking(connection: Connection, model: StoredModel, contents: Iterable[int]) -> int:
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


def _go_on(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise InterruptedRun(hint="run the same command again to go on")


def _paced(finished: Iterable[Lacking], pace: Pace) -> Iterator[Lacking]:
    for one in finished:
        yield one
        pace.hold()


def _chunks(finished: Iterable[Lacking]) -> Iterator[list[Lacking]]:
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


def _pages(connection: Connection, model: StoredModel, given_up: set[int]) -> Iterator[list[Lacking]]:
    """Contents that the model has neither a vector of nor a reason to have none, once through, by their number."""
    after = 0
    while True:
        rows = connection.execute(
            "select k from imgsearch.model m, imgsearch._lacking(m, %s, %s) k where m.model_id = %s",
            [after, CONTENTS_A_PAGE, model.model_id],
        ).fetchall()
        if not rows:
            return
        after = max(row[0] for row in rows)
        wanted = [row[0] for row in rows if row[0] not in given_up]
        page = connection.cursor(row_factory=class_row(Lacking)).execute(FILES, [wanted]).fetchall()
        if page:
            yield page


def _embedded(
    pool: ThreadPoolExecutor, page: list[Lacking], model: LoadedModel, watch: Stopwatch
) -> Generator[Lacking, None, None]:
    """Read and decode in a pool, embed in batches; in order."""
    limit_pixels(max(*(one.pixels for one in page), DEFAULT_LIMITS.max_pixels))
    read = ordered_map(pool, lambda one: _read(one, model), iter(page), 2 * cores())
    waiting: deque[Lacking] = deque()
    with closing(prefetch(read, 2 * model.batch_size, "prepare")) as ready:

        def items() -> Iterator[Item]:
            for one in ready:
                waiting.append(one)
                yield one.item

        for _ in embed(items(), [model], watch):
            yield waiting.popleft()


def _read(one: Lacking, model: LoadedModel) -> Lacking:
    """Prepare the first of its files that still has the bytes that were ingested; they were within the limits then."""
    item = one.item
    limits = ImageLimits(max(one.pixels, DEFAULT_LIMITS.max_pixels), max(one.bytes, DEFAULT_LIMITS.max_bytes))
    for path, root in zip(one.paths, one.roots, strict=True):
        item.failure = None
        try:
            item.data = fetch.read_bytes(location_of(path, root), limits.max_bytes)
            if digest(item).sha256 != one.sha256:
                raise ValueError("the file has other bytes than those that were ingested")
            prepare(item, [model], limits)
        except Exception as error:  # a broken or vanished file never stops a run; perhaps a copy of it is there
            item.fail(error)
        if item.failure is None:
            break
    return one
