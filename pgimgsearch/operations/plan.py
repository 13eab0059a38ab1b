"""What a number of images will cost: disk, memory and time, extrapolated from what was measured."""

from dataclasses import dataclass
from typing import Any

from pgimgsearch.database.models import StoredModel
from pgimgsearch.indexing.methods import (  # fmt: skip
    ITEM,
    PAGE,
    PAGE_HEAD,
    ROUGH,
    aligned,
    graph_bytes,
    method_of,
    suitable,
    vector_bytes,
)

ROW_HEAD, KEY = 24, 8
ENTRY = 20  # of a B-tree over a bigint, with the room it leaves
PARTITION_ROWS = 20_000_000  # from here on a single graph takes most of a day to build anew
GROWTH = 1.2  # of the time of a build over its rows, from 10,000 to 1,000,000 of 768 dimensions (benchmarks/scale.py)
GIGABYTE = 1e9


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured: bytes of a row, a trial build of an index, images a second; ``sources`` say how."""

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


def plan(images: int, model: StoredModel, rates: Rates, memory: float) -> Plan:
    """Extrapolate; ``memory`` is that of the database's server, in bytes."""
    method = method_of(model)
    graph = 0.0 if method == "none" else graph_bytes(images // model.partitions, model, method) * 1.2
    table, graph_on_disk = images * rates.table_row, images * rates.index_row
    embedding = None if rates.images_per_second is None else images / rates.images_per_second
    return Plan(
        images, table, graph_on_disk, images * rates.image_row, graph, build_seconds(images, rates), embedding,
        advise(images, model, graph_on_disk, graph, embedding, memory),
    )  # fmt: skip


def build_seconds(images: int, rates: Rates) -> float | None:
    """Each insertion walks a graph that gets deeper, and beyond the processor's caches it waits for memory."""
    if not rates.trial_rows:
        return None
    return float(rates.trial_seconds * (images / rates.trial_rows) ** GROWTH)


def advise(
    images: int, model: StoredModel, on_disk: float, graph: float, embedding: float | None, memory: float
) -> list[str]:
    """When to quantise, to partition and to distribute, and what else to do first."""
    told = []
    reduced = (
        f"pgimgsearch models add {model.name} --dim" if model.full_dim is None and model.storage != "bit" else None
    )
    bits = suitable(model, images, 0) == "hnsw-binary" and method_of(model) not in ROUGH
    if model.index_wanted["method"] != "none" and method_of(model) == "none":
        told.append(
            f"{model.dim} dimensions have no index: every search reads every vector"
            + (f"; reduce them: {reduced} 1024" if reduced else "")
        )
    if graph > memory / 2:
        told.append(
            f"quantise: a build holds {graph / GIGABYTE:.0f} GB, and half of the server's memory is "
            f"{memory / 2 / GIGABYTE:.0f} GB; beyond that it takes several times the hours above"
            + (f". By bits: pgimgsearch index build {model.name} --method hnsw-binary" if bits else "")
            + (f". Fewer dimensions: {reduced} {max(64, model.dim // 4)}" if reduced else "")
        )
    if images > PARTITION_ROWS * model.partitions or graph > memory:
        told.append(
            "partition: to build one graph of this size anew takes very long: pgimgsearch index partition "
            f"{model.name} {max(2, min(64, 2 * images // PARTITION_ROWS))}, before anything is ingested; or keep "
            "collections that are searched apart in databases of their own"
        )
    if on_disk > 4 * memory:
        told.append(
            f"distribute: the index is {on_disk / memory:.0f} times the server's memory, so searches wait for the "
            "disk; spread the images over several servers"
        )
    if embedding is not None and embedding > 7 * 86400:
        told.append("embed on a GPU, or on several machines at once with a collection each")
    return told


def table_row_bytes(model: StoredModel) -> float:
    """A row of a model's table and its key, from how Postgres lays them out (PostgreSQL: storage-page-layout)."""
    row = aligned(ROW_HEAD + KEY + 8 + vector_bytes(model.storage, model.dim)) + ITEM
    return PAGE / max(1, (PAGE - PAGE_HEAD) // row) + ENTRY


def as_dict(found: Plan, model: StoredModel, rates: Rates) -> dict[str, Any]:
    """For a person or JSON: gigabytes and hours."""
    build = None if found.build is None else found.build / 3600
    return {
        "images": found.images, "model": model.name, "dim": model.dim, "storage": model.storage,
        "table_gb": found.table / GIGABYTE, "index_gb": found.index / GIGABYTE,
        "image_rows_gb": found.rows / GIGABYTE,
        "disk_gb": (found.table + found.index + found.rows) / GIGABYTE,
        "memory_to_serve_gb": found.index / GIGABYTE,
        "build_memory_gb": found.build_memory / GIGABYTE, "build_hours": build,
        "embedding_hours": None if found.embedding is None else found.embedding / 3600,
        "images_per_second": None if rates.images_per_second is None else round(rates.images_per_second, 1),
        "measured": rates.sources, "advice": found.advice,
    }  # fmt: skip
