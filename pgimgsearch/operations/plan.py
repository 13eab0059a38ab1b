"""What a number of images will take: disk, memory and time, extrapolated from measured rates."""

from dataclasses import dataclass
from typing import Any

from pgimgsearch.indexing.methods import (
    ITEM,
    PAGE,
    PAGE_HEAD,
    IndexSpec,
    aligned,
    graph_bytes,
    suitable_method,
    vector_bytes,
)

ROW_HEAD, KEY = 24, 8
ENTRY = 20  # of a B-tree over a bigint, with its free space
PARTITION_ROWS = 20_000_000  # from here on, rebuilding a single graph takes most of a day
GROWTH = 1.2  # of the time of a build over its rows, from 10,000 to 1,000,000 of 768 dimensions (benchmarks/scale.py)
GIGABYTE = 1e9


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model to plan for, stored or not."""

    name: str
    index: IndexSpec
    partitions: int = 1
    is_reduced: bool = False


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured rates: bytes of a row, a trial build of an index, images a second; ``sources`` name how."""

    table_row: float
    index_row: float
    image_row: float
    trial_rows: int
    trial_seconds: float
    images_per_second: float | None
    sources: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What it will take; sizes in bytes, times in seconds, None where nothing was measured."""

    images: int
    table: float
    index: float
    rows: float
    build_memory: float
    build: float | None
    embedding: float | None
    advice: list[str]


def plan(images: int, model: PlannedModel, rates: Rates, memory: float) -> Plan:
    """Extrapolate; ``memory`` is that of the database's server, in bytes."""
    method = model.index.method
    graph = 0.0 if method == "none" else graph_bytes(images // model.partitions, model.index, method) * 1.2
    table, graph_on_disk = images * rates.table_row, images * rates.index_row
    embedding = None if rates.images_per_second is None else images / rates.images_per_second
    return Plan(
        images, table, graph_on_disk, images * rates.image_row, graph, build_seconds(images, rates), embedding,
        advise(images, model, graph_on_disk, graph, embedding, memory),
    )  # fmt: skip


def build_seconds(images: int, rates: Rates) -> float | None:
    """Each insertion walks a graph that gets deeper, and beyond the processor's caches waits for memory."""
    if not rates.trial_rows:
        return None
    return float(rates.trial_seconds * (images / rates.trial_rows) ** GROWTH)


def advise(
    images: int, model: PlannedModel, on_disk: float, graph: float, embedding: float | None, memory: float
) -> list[str]:
    """When to quantize, to partition and to distribute, and what else to do first."""
    advice, spec = [], model.index
    reduced = f"pgimgsearch models add {model.name} --dim" if not model.is_reduced and spec.storage != "bit" else None
    bits = suitable_method(spec, images, 0) == "hnsw-binary" and spec.method != "hnsw-binary"
    if spec.wanted != "none" and spec.method == "none":
        advice.append(
            f"{spec.dim} dimensions have no index: every search reads every vector"
            + (f"; reduce them: {reduced} 1024" if reduced else "")
        )
    if graph > memory / 2:
        advice.append(
            f"quantize: a build holds {graph / GIGABYTE:.0f} GB, and half of the server's memory is "
            f"{memory / 2 / GIGABYTE:.0f} GB; beyond that it takes several times the hours above"
            + (f". By bits: pgimgsearch index build {model.name} --method hnsw-binary" if bits else "")
            + (f". Fewer dimensions: {reduced} {max(64, spec.dim // 4)}" if reduced else "")
        )
    if images > PARTITION_ROWS * model.partitions or graph > memory:
        advice.append(
            "partition: rebuilding one graph of this size takes very long: pgimgsearch index partition "
            f"{model.name} {max(2, min(64, 2 * images // PARTITION_ROWS))}, before anything is ingested; or keep "
            "collections that are searched separately in databases of their own"
        )
    if on_disk > 4 * memory:
        advice.append(
            f"distribute: the index is {on_disk / memory:.0f} times the server's memory, so searches wait for the "
            "disk; spread the images over several servers"
        )
    if embedding is not None and embedding > 7 * 86400:
        advice.append("embed on a GPU, or on several machines at once with a collection each")
    return advice


def table_row_bytes(spec: IndexSpec) -> float:
    """A row of a model's table and its key, from how Postgres lays them out (PostgreSQL: storage-page-layout)."""
    row = aligned(ROW_HEAD + KEY + 8 + vector_bytes(spec.storage, spec.dim)) + ITEM
    return PAGE / max(1, (PAGE - PAGE_HEAD) // row) + ENTRY


def as_dict(found: Plan, model: PlannedModel, rates: Rates) -> dict[str, Any]:
    """For a person or JSON: gigabytes and hours."""
    build = None if found.build is None else found.build / 3600
    return {
        "images": found.images, "model": model.name, "dim": model.index.dim, "storage": model.index.storage,
        "table_gb": found.table / GIGABYTE, "index_gb": found.index / GIGABYTE,
        "image_rows_gb": found.rows / GIGABYTE,
        "disk_gb": (found.table + found.index + found.rows) / GIGABYTE,
        "memory_to_serve_gb": found.index / GIGABYTE,
        "build_memory_gb": found.build_memory / GIGABYTE, "build_hours": build,
        "embedding_hours": None if found.embedding is None else found.embedding / 3600,
        "images_per_second": None if rates.images_per_second is None else round(rates.images_per_second, 1),
        "measured": rates.sources, "advice": found.advice,
    }  # fmt: skip
