"""Ingest on many machines, with Ray Data: every worker runs a whole local ingest on parts of the source.

Only paths and counts travel between machines; images and tensors stay where they are read. Ray restarts a lost worker,
which repeats its part and finds unchanged what it had committed.
"""

import itertools
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psycopg
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from pgimgsearch.concurrency import stop_signals
from pgimgsearch.database.collections import open_collection
from pgimgsearch.database.contents import orphans
from pgimgsearch.database.reconnect import session
from pgimgsearch.embeddings.deferred_models import DeferredModels
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.errors import DatabaseError, ModelError, PgImgSearchError, UsageError
from pgimgsearch.ingest import run
from pgimgsearch.ingest.item import OUTCOMES, Counts
from pgimgsearch.ingest.load_target import join_shadows
from pgimgsearch.ingest.run import Options, Refine, Report
from pgimgsearch.ingest.run_log import end_run, lock_collection, settle_shards, start_run, store_counts
from pgimgsearch.ingest.stopwatch import Stopwatch
from pgimgsearch.ingest.write import drop_orphans
from pgimgsearch.reporter import SILENT, Reporter
from pgimgsearch.sources.source import Part, ScannedFile, Source

FILES_A_PART = 500
RESTARTS, RETRIES = (
    20,
    3,
)  # of a worker; of one part, as an image that kills every worker would otherwise be tried for ever
PARTS_AT_ONCE = 1000  # handed to Ray together: a list of a million paths, however long the source is


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker needs to know."""

    url: str = field(repr=False)
    request: ModelRequest
    options: Options
    collection_id: int
    root: str
    refine: Refine


class Worker:
    """Models loaded once, for one part after the other. Ray makes one of these in each of its processes."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.models = open_models(job.url, job.request, [], job.options.limits)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Ingest one part; what was done goes back to the driver."""
        from ray import cloudpickle

        counts, stages = self.ingest_part(cloudpickle.loads(batch["part"][0]))
        return {"done": [cloudpickle.dumps((counts.by_model, stages))]}

    @retry(retry=retry_if_exception_type(DatabaseError), stop=stop_after_attempt(3), reraise=True)
    def ingest_part(self, part: list[ScannedFile] | Part) -> tuple[Counts, dict[str, Any]]:
        """Ingest one part; tried again where its connections could not be opened, as the server was going away."""
        job, watch = self.job, Stopwatch()
        counts = Counts([model.stored.name for model in self.models])
        files = iter(part) if isinstance(part, list) else part(job.root)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.part(job.url, job.collection_id, self.models, job.refine(files), job.options, counts, watch)
        return counts, {name: asdict(stage) for name, stage in watch.stages.items()}


def ingest_on_ray(
    url: str, source: Source, models: DeferredModels, options: Options, *, request: ModelRequest,
    workers: int | None, refine: Refine = lambda files: files, reporter: Reporter = SILENT,
) -> Report:  # fmt: skip
    """Ingest a source with ``workers`` processes of a Ray cluster, by default one for each GPU.

    ``models`` are those of ``request``; each worker loads its own. The cluster is that of RAY_ADDRESS, else
    one is started on this machine. Raises like ``run.ingest``.
    """
    _check(source, options)
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Ray warns of what it does to tests and to a cluster that is busy
        each = stack.enter_context(_cluster(workers, request.placement.device))
        stopped = stack.enter_context(stop_signals())  # after Ray, which has a handler of its own
        driver = stack.enter_context(session(url, stopped, reporter))
        counts, watch = Counts([model.name for model in models.stored]), Stopwatch()
        collection_id, collection, root = open_collection(
            driver.connection, options.collection, source.root, source.default_collection
        )
        lock_collection(driver, collection_id, collection)
        join_shadows(driver, models.stored, options.shadow)  # held from first to last
        run_id = start_run(driver.connection, collection_id, source.label, models.stored)
        job = Job(url, request, replace(options, workers=each.cpus), collection_id, root, refine)
        try:
            for done, stages in _results(job, each, parts(source, root, options.limit), stopped):
                _add_counts(counts, watch, done, stages)
                driver.run(lambda: store_counts(driver.connection, run_id, counts))
                reporter.progress(counts.done(), None)
            status = "interrupted" if stopped.is_set() else "complete"
            if status == "complete":
                settle_shards(driver, collection_id, run_id, [part.path(root) for part in source.parts])
                # a lost worker cannot name its own; after a stop, workers may still run and rely on them
                drop_orphans(driver, driver.run(lambda: orphans(driver.connection)))
        except BaseException:
            with suppress(psycopg.OperationalError):
                end_run(driver.connection, run_id, "failed", counts, watch, models.loaded or [])
            raise
        driver.run(lambda: end_run(driver.connection, run_id, status, counts, watch, models.loaded or []))
    return Report(source.label, collection, counts.as_dict(), time.perf_counter() - start, watch.stages, status,
                  left_out=source.left_out.told())  # fmt: skip


def parts(source: Source, root: str, limit: int | None) -> Iterator[list[ScannedFile] | Part]:
    """Shards one by one, other files some hundreds at a time."""
    if source.parts:
        yield from source.parts
        return
    files = itertools.islice(source.files(root), limit)
    while chunk := list(itertools.islice(files, FILES_A_PART)):
        yield chunk


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


@contextmanager
def _cluster(workers: int | None, device: str) -> Iterator[Each]:
    """Connect to the cluster, or start one here and stop it at the end."""
    try:
        import ray
    except ImportError as error:
        raise ModelError(
            "--engine ray needs the package ray, which is not installed", hint="run: pip install 'pgimgsearch[ray]'"
        ) from error
    import ray.data

    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails comes as an exception too
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield shares([node["Resources"] for node in ray.nodes() if node["Alive"]], workers, device)
    finally:
        if ours:
            ray.shutdown()


def shares(nodes: Sequence[Mapping[str, float]], workers: int | None, device: str) -> Each:
    """How many workers, and what each gets, so that every one fits onto a machine of the cluster."""
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    on_gpu = device.startswith("cuda") or (device == "auto" and gpus > 0)
    able = [node for node in nodes if not on_gpu or node.get("GPU", 0)]
    places = gpus if on_gpu else sum(int(node.get("CPU", 0)) for node in able)
    count = workers or (gpus if on_gpu else len(able))
    if not able or count > places:
        what = "GPUs" if on_gpu else "cores"
        raise UsageError(
            f"the cluster has {places} {what}, too few for {count} workers", hint="take fewer --ray-workers"
        )
    if on_gpu:
        return Each(count, max(1, min(int(node.get("CPU", 1) // node["GPU"]) for node in able)), 1)
    cpus = 1
    while sum(int(node.get("CPU", 0)) // (cpus + 1) for node in able) >= count:
        cpus += 1
    return Each(count, cpus, 0)


def _results(
    job: Job, each: Each, found: Iterator[list[ScannedFile] | Part], stopped: threading.Event
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What workers report, part by part, in no order."""
    import ray.data
    from ray import cloudpickle
    from ray.exceptions import RayError

    while not stopped.is_set() and (some := list(itertools.islice(found, PARTS_AT_ONCE))):
        rows = [{"part": cloudpickle.dumps(part)} for part in some]
        todo = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker, fn_constructor_args=(job,), batch_size=1, concurrency=each.workers, num_cpus=each.cpus,
            num_gpus=each.gpus, max_restarts=RESTARTS, max_task_retries=RETRIES,
        )  # fmt: skip
        try:
            for row in todo.iter_rows():
                yield cloudpickle.loads(row["done"])
                if stopped.is_set():
                    return
        except RayError as error:
            raise _inner_error(error) from error


def _inner_error(error: BaseException) -> PgImgSearchError:
    """The error of ours inside what Ray wraps around it."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, PgImgSearchError):
        inner = getattr(inner, "cause", None) or inner.__cause__
    if inner is not None:
        return type(inner)(str(inner), hint=inner.hint)
    cause = getattr(error, "cause", None) or error
    told = (str(cause).strip().splitlines() or [""])[0]
    return PgImgSearchError(
        f"a worker failed: {type(cause).__name__}: {told}",
        hint="what was committed is kept; run the same command again to go on, with --engine local to see it closer",
    )


def _add_counts(counts: Counts, watch: Stopwatch, done: dict[str, Any], stages: dict[str, Any]) -> None:
    for number, name in enumerate(counts.by_model):
        for outcome in OUTCOMES:
            counts.add(number, outcome, done[name][outcome])
    for name, stage in stages.items():
        watch.add(name, **stage)
