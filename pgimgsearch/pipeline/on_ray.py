"""A run over many machines, on Ray Data: every worker is a whole local pipeline, on parts of the source.

Only paths and counts travel between machines; pictures and tensors stay where they are read. A worker that is lost is
started again by Ray and repeats its part, of which it finds unchanged what it had committed.
"""

import itertools
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import psycopg

from pgimgsearch.database import store
from pgimgsearch.database.session import session
from pgimgsearch.errors import DatabaseError, ModelError, PgImgSearchError, UsageError
from pgimgsearch.pipeline import books, opening, run
from pgimgsearch.pipeline.copy_in import drop_orphans
from pgimgsearch.pipeline.item import OUTCOMES, Counts
from pgimgsearch.pipeline.loaded import LoadedModel
from pgimgsearch.pipeline.opening import Wish
from pgimgsearch.pipeline.run import Options, Refine, Report
from pgimgsearch.pipeline.scan import ScannedFile, Source
from pgimgsearch.pipeline.stages import Stage, Stopwatch, stop_signals

FILES_A_PART = 500
PARTS_AT_ONCE = 1000  # handed to Ray together: a list of a million paths, however long the source is

Part = Callable[[], Iterator[ScannedFile]]


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker has to know."""

    url: str
    wish: Wish
    options: Options
    collection_id: int


class Worker:
    """Models loaded once, for one part after the other. Ray makes one of these in each of its processes."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.models = opening.open_models(job.url, job.wish, [], job.options, lambda _: None)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Bring one part into the database; what was done goes back to the driver."""
        from ray import cloudpickle

        part: Part = cloudpickle.loads(batch["part"][0])
        counts, watch = Counts([model.stored.name for model in self.models]), Stopwatch()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            replaced = run.part(
                self.job.url, self.job.collection_id, self.models, part(), self.job.options, counts, watch
            )
        stages = {name: asdict(stage) for name, stage in watch.stages.items()}
        return {"done": [cloudpickle.dumps((counts.by_model, stages, replaced))]}


def ingest(
    url: str, source: Source, models: Sequence[LoadedModel], options: Options, *, wish: Wish, workers: int | None,
    refine: Refine = lambda files: files, progress: Callable[[int], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Bring a source into the database with ``workers`` processes of a Ray cluster, by default one a GPU.

    ``models`` are those of ``wish``, as this process has opened them. The cluster is that of RAY_ADDRESS, else one is
    started on this machine. Raises like ``run.ingest``.
    """
    _check(source, options)
    start = time.perf_counter()
    with ExitStack() as stack:
        stopped = stack.enter_context(stop_signals())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Ray warns of what it does to tests and to a cluster that is busy
        each = stack.enter_context(_cluster(workers, on_gpu=any(m.encoder.device.startswith("cuda") for m in models)))
        driver = stack.enter_context(session(url, stopped, tell))
        counts, watch = Counts([model.stored.name for model in models]), Stopwatch()
        collection_id, collection, root = store.open_collection(
            driver.connection, options.collection, source.root, source.default_collection
        )
        books.lock(driver, collection_id, collection)
        run_id = books.begin(driver.connection, collection_id, source.label, models)
        job = Job(url, wish, replace(options, workers=each.cpus), collection_id)
        replaced: set[int] = set()
        try:
            for done, stages, contents in _results(job, each, parts(source, root, refine, options.limit), stopped):
                _add(counts, watch, done, stages)
                replaced |= contents
                driver.run(lambda: books.note(driver.connection, run_id, counts))
                progress(counts.done())
            status = "interrupted" if stopped.is_set() else "complete"
            drop_orphans(driver, replaced)
        except BaseException:
            with suppress(psycopg.OperationalError):
                books.end(driver.connection, run_id, "failed", counts, watch)
            raise
        driver.run(lambda: books.end(driver.connection, run_id, status, counts, watch))
    return Report(source.label, collection, counts.as_dict(), time.perf_counter() - start, watch.stages, status,
                  left_out=source.left_out[0])  # fmt: skip


def parts(source: Source, root: str, refine: Refine, limit: int | None) -> Iterator[Part]:
    """Shards one by one, other files some hundreds at a time."""
    if source.parts:
        for shard in source.parts:
            yield partial(_refined, refine, shard)
        return
    files = itertools.islice(refine(source.files(root)), limit)
    while chunk := list(itertools.islice(files, FILES_A_PART)):
        yield partial(iter, chunk)


def _refined(refine: Refine, shard: Part) -> Iterator[ScannedFile]:
    return refine(shard())


def _check(source: Source, options: Options) -> None:
    refused = {
        "--prune": options.prune, "--skip-duplicates": options.skip_duplicates,
        "--limit with shards": options.limit is not None and bool(source.parts),
    }  # fmt: skip
    for what, asked in refused.items():
        if asked:
            raise UsageError(f"{what} does not go with --engine ray", hint="run it on one machine: leave --engine out")


@dataclass(frozen=True, slots=True)
class Each:
    """What one worker gets of the cluster, and how many there are."""

    workers: int
    cpus: int
    gpus: int


class _cluster:  # noqa: N801  (a context manager that is used once)
    """Connect to the cluster, or start one here and stop it at the end."""

    def __init__(self, workers: int | None, *, on_gpu: bool) -> None:
        self.workers, self.on_gpu = workers, on_gpu

    def __enter__(self) -> Each:
        try:
            import ray
        except ImportError as error:
            raise ModelError(
                "--engine ray needs the package ray, which is not installed", hint="run: pip install 'pgimgsearch[ray]'"
            ) from error
        import ray.data

        self.ours = not ray.is_initialized()
        if self.ours:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails comes as an exception too
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        there = ray.cluster_resources()
        cpus, gpus = int(there.get("CPU", 1)), int(there.get("GPU", 0)) if self.on_gpu else 0
        workers = self.workers or gpus or 1
        if workers > max(cpus, gpus):
            raise UsageError(f"the cluster has {cpus} cores, too few for {workers} workers", hint="take fewer")
        return Each(workers, max(1, cpus // workers), 1 if gpus else 0)

    def __exit__(self, *_: object) -> None:
        import ray

        if self.ours:
            ray.shutdown()


def _results(
    job: Job, each: Each, found: Iterator[Part], stopped: threading.Event
) -> Iterator[tuple[dict[str, Any], dict[str, Any], set[int]]]:
    """What workers report, part by part, in no order."""
    import ray.data
    from ray import cloudpickle
    from ray.exceptions import RayError

    while not stopped.is_set() and (some := list(itertools.islice(found, PARTS_AT_ONCE))):
        rows = [{"part": cloudpickle.dumps(part)} for part in some]
        todo = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker, fn_constructor_args=(job,), batch_size=1, concurrency=each.workers, num_cpus=each.cpus,
            num_gpus=each.gpus,
        )  # fmt: skip
        try:
            for row in todo.iter_rows():
                yield cloudpickle.loads(row["done"])
                if stopped.is_set():
                    return
        except RayError as error:
            raise _told(error) from error


def _told(error: BaseException) -> PgImgSearchError:
    """The error of ours inside what Ray wraps around it."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, PgImgSearchError):
        inner = getattr(inner, "cause", None) or inner.__cause__
    if inner is not None:
        return type(inner)(str(inner), hint=inner.hint)
    return DatabaseError(
        f"a worker failed: {str(error).strip().splitlines()[-1]}", hint="run the same command again to go on"
    )


def _add(counts: Counts, watch: Stopwatch, done: dict[str, Any], stages: dict[str, Any]) -> None:
    for number, name in enumerate(counts.by_model):
        for outcome in OUTCOMES:
            counts.add(number, outcome, done[name][outcome])
    for name, stage in stages.items():
        total = watch.stages.setdefault(name, Stage())
        total.seconds += stage["seconds"]
        total.pictures += stage["pictures"]
