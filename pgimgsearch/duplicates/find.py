"""All pairs above a threshold, remembered: new images against all, by the index or by all products."""

import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from psycopg_pool import ConnectionPool

from pgimgsearch.concurrency import ordered_map, stop_signals
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.memory import MEGABYTE, machine_memory
from pgimgsearch.database.models import StoredModel, count_embeddings
from pgimgsearch.database.session_settings import apply_settings
from pgimgsearch.duplicates import pairs as remember
from pgimgsearch.duplicates.pairs import (
    begin_scan,
    count_crowded,
    count_pairs,
    equal_to_earlier,
    exclusive_scan,
    forget_scan,
    most_pairs,
    scanned_threshold,
    store_pairs,
    unscanned,
)  # fmt: skip
from pgimgsearch.embeddings.matmul import CpuProducts, Highest, hold, settle_device
from pgimgsearch.embeddings.read_vectors import read_vectors
from pgimgsearch.embeddings.similarity import product_at, similarity, unit_rows
from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.reporter import SILENT, Reporter

TRIED, BLOCK = 64, 500  # contents the index is asked for at once: to measure, and to work
FEW = 2000  # new contents for which no other way pays
ROWS_READ_A_SECOND = 100_000  # of COPY, roughly
SPARE_ROWS = 10_000  # that may come between counting and reading
LONG, GPU = 20, 10  # seconds from which it is worth to look for a GPU, which multiplies at least so much faster
SOME, MANY = 50, 1000  # images from which it is known that a threshold is senseless: below the model's own, without one

Method = Literal["auto", "index", "exact"]
Step = tuple[int, int]  # contents compared, pairs that are new


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan did: contents compared, pairs that are new, and pairs remembered by now.

    ``crowded`` contents have ``most`` or more: of more, only those with their nearest are remembered.
    """

    model: str
    threshold: float
    compared: int
    new_pairs: int
    pairs: int
    crowded: int
    most: int
    method: str
    seconds: float
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """All vectors of a model: ``ids`` (n,) content_id, ``vectors`` (n, dim) float16 of length one."""

    ids: NDArray[np.int64]
    vectors: NDArray[np.float16]

    def only(self, rows: NDArray[np.bool_]) -> "Matrix":
        """Some of the rows."""
        return self if rows.all() else Matrix(self.ids[rows], self.vectors[rows])


def find(
    url: str, model: StoredModel, threshold: float, *, method: Method = "auto", device: str = "auto", workers: int = 2,
    reporter: Reporter = SILENT,
) -> ScanResult:  # fmt: skip
    """Compare what no scan has compared yet with everything, and remember the pairs at least as similar.

    What is finished is committed, so an interrupted scan goes on where it was.
    """
    start = time.perf_counter()
    with connect(url) as connection, exclusive_scan(connection, model), stop_signals() as stopped:
        earlier = scanned_threshold(connection, model)
        cut = begin_scan(connection, model, threshold)
        fresh = unscanned(connection, model, cut)
        before, stored, most = (
            count_pairs(connection, model),
            count_embeddings(connection, model),
            most_pairs(connection),
        )
        chosen, device = _plan(connection, model, cut, fresh, stored, method, device, workers, reporter)
        reporter.progress(0, len(fresh))
        if chosen == "exact":
            steps = _exactly(connection, model, cut, fresh, stored, most, device)
        else:
            steps = _through_index(url, model, cut, fresh, workers)
        compared = new_pairs = 0
        try:
            for number, new in steps:
                compared, new_pairs = compared + number, new_pairs + new
                reporter.progress(compared, len(fresh))
                _check_sense(model, cut, before + new_pairs, stored - len(fresh) + compared, most)
                if stopped.is_set():
                    steps.close()
                    break
        except UsageError:
            steps.close()  # what other threads are comparing is stored before it is forgotten
            forget_scan(connection, model, earlier, fresh)
            raise
        pairs = count_pairs(connection, model)
        crowded = count_crowded(connection, model, most) if compared else 0
    return ScanResult(
        model.name, cut, compared, pairs - before, pairs, crowded, most, chosen, time.perf_counter() - start,
        compared < len(fresh),
    )  # fmt: skip


def _plan(
    connection: Connection, model: StoredModel, cut: float, fresh: list[int], rows: int, method: Method, device: str,
    workers: int, reporter: Reporter,
) -> tuple[str, str]:  # fmt: skip
    """Measure both ways on a small part, and say what was chosen; what the index was asked for meanwhile is kept."""
    fits = rows * model.dim * 2 < machine_memory() * MEGABYTE / 4
    if method == "exact" or model.index_method == "none":
        if method == "index":
            raise ModelError(f"{model.name} has no index", hint=f"run: pgimgsearch index build {model.name}")
        if not fits:
            raise ModelError(
                f"the vectors of {model.name} do not fit a quarter of this machine's memory, and it has no index",
                hint=f"run: pgimgsearch index build {model.name}",
            )
        return "exact", settle_device(device)
    if method == "index" or not fits or len(fresh) <= FEW:
        return "index", "cpu"
    remember.scan(connection, model, cut, fresh[:TRIED])  # to warm up
    start = time.perf_counter()
    remember.scan(connection, model, cut, fresh[TRIED : 2 * TRIED])
    by_index = (time.perf_counter() - start) / TRIED * len(fresh) / workers
    reading = rows / ROWS_READ_A_SECOND
    multiplying = _product_seconds(model.dim) * rows * len(fresh) * (0.5 if len(fresh) == rows else 1)
    if min(by_index, reading + multiplying) > LONG and device == "auto":
        device = settle_device(device)
    exactly = reading + (multiplying if device in {"auto", "cpu"} else multiplying / GPU)
    chosen = "exact" if exactly < by_index else "index"
    reporter.say(
        f"{len(fresh)} to compare with {rows}: about {by_index:.0f} s by the index, {exactly:.0f} s exactly: {chosen}"
    )
    return chosen, "cpu" if device == "auto" else device


def _product_seconds(dim: int) -> float:
    """Seconds for one product of two vectors, one of very many at once, on this machine."""
    part = np.ones((2048, dim), np.float16)
    products = CpuProducts(part)
    products.above(slice(0, 2048), slice(0, 2048), np.inf)
    start = time.perf_counter()
    products.above(slice(0, 2048), slice(0, 2048), np.inf)
    return (time.perf_counter() - start) / 2048**2


def _through_index(
    url: str, model: StoredModel, cut: float, fresh: Sequence[int], workers: int
) -> Generator[Step, None, None]:
    """Blocks of contents, over several connections; yields a step for each that is done."""
    blocks = (list(fresh[start : start + BLOCK]) for start in range(0, len(fresh), BLOCK))
    with (
        ConnectionPool(
            url, min_size=workers, max_size=workers, kwargs={"autocommit": True}, configure=apply_settings
        ) as connections,
        ThreadPoolExecutor(workers, thread_name_prefix="pairs") as threads,
    ):

        def scan(block: list[int]) -> Step:
            with connections.connection() as connection:
                return len(block), remember.scan(connection, model, cut, block)

        yield from ordered_map(threads, scan, blocks, 2 * workers)


def _exactly(
    connection: Connection, model: StoredModel, cut: float, fresh: Sequence[int], stored: int, most: int, device: str
) -> Generator[Step, None, None]:
    """Tile by tile of what is new, against all that comes before it; yields a step for each tile that is done.

    What is new comes last in that order, so that each product is made once, and the copies of a crowd are those of its
    oldest. Contents with equal pixels are one, the first.
    """
    matrix = _read(connection, model, stored + SPARE_ROWS)
    equal = np.asarray(equal_to_earlier(connection, model), np.int64)
    matrix = matrix.only(~np.isin(matrix.ids, equal))
    new = np.isin(matrix.ids, np.asarray(fresh, np.int64))
    order = np.lexsort((matrix.ids, new))
    ids, old = matrix.ids[order], len(new) - int(new.sum())
    products = hold(matrix.vectors[order], device)
    del matrix
    least, total = product_at(cut, model.storage), count_pairs(connection, model)
    for start in range(old, len(ids), products.tile):
        rows = slice(start, min(start + products.tile, len(ids)))
        highest = Highest(most)
        for first in range(0, rows.stop, products.tile):
            highest.add(*products.above(rows, slice(first, min(first + products.tile, rows.stop)), least))
        a, b, found = highest.result()
        _check_sense(model, cut, total + len(a), rows.stop, most)  # before so many are stored
        new_pairs = store_pairs(
            connection, model, ids[rows].tolist(), ids[a].tolist(), ids[b].tolist(),
            np.minimum(similarity(found, model.storage), 1).tolist(),
        )  # fmt: skip
        total += new_pairs
        yield rows.stop - rows.start, new_pairs
    if len(same := np.intersect1d(equal, np.asarray(fresh, np.int64))):
        yield len(same), store_pairs(connection, model, same.tolist(), [], [], [])  # they have the pairs of their first


def _read(connection: Connection, model: StoredModel, most: int) -> Matrix:
    """All vectors of a model in half precision, once they have length one."""
    matrix = Matrix(np.empty(most, np.int64), np.empty((most, model.dim), np.float16))
    rows = 0
    for ids, vectors in read_vectors(connection, model):
        part = slice(rows, rows + len(ids))
        if part.stop > most:  # what came meanwhile is for the next scan
            break
        matrix.ids[part], matrix.vectors[part] = ids, unit_rows(vectors, model.storage)
        rows = part.stop
    return Matrix(matrix.ids[:rows], matrix.vectors[:rows])


def _check_sense(model: StoredModel, cut: float, pairs: int, compared: int, most: int) -> None:
    """Refuse a threshold, unless it is the model's own, at which images have half of the pairs that they can have."""
    low = model.near is None or cut < min(model.near, model.similar or model.near) - 1e-6
    enough = compared >= (MANY if model.near is None else SOME)
    if low and enough and pairs > compared * min(compared / 2, most) / 2:
        raise UsageError(
            f"{pairs} pairs of {compared} images are at least {cut:.4g} similar to {model.name}: that is no "
            "threshold for duplicates; what this scan stored was deleted",
            hint=f"measure one: pgimgsearch models calibrate {model.name}; or give a higher --threshold",
        )
