"""What an index holds and takes: its method, its bytes, and the memory to build it with. No index is touched here."""

import math

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.memory import MEGABYTE, machine_memory
from pgimgsearch.database.store import StoredModel

MOST_DIMENSIONS = {"halfvec": 4000, "vector": 2000, "bit": 64000}  # that pgvector indexes
LEAST_BITS = 256  # of fewer dimensions the bits alone say too little
PAGE, PAGE_HEAD, ITEM = 8192, 24, 4  # bytes of a page of Postgres, of its header, of a pointer to a row
LISTS = 1000  # rows of a list, up to a million rows (pgvector: README, IVFFlat)


def method_of(model: StoredModel) -> str:
    """The method that a model's index is wanted with; by bits where the column has too many dimensions for another."""
    wanted: str = model.index_wanted["method"]
    if wanted != "none" and model.dim > MOST_DIMENSIONS[model.storage]:
        return "hnsw-binary" if model.dim <= MOST_DIMENSIONS["bit"] else "none"
    return wanted


def suitable(model: StoredModel, rows: int, limit: int) -> str:
    """The method for so many rows where a build may take ``limit`` megabytes: bits where the graph would not fit."""
    if model.storage == "bit" or model.dim < LEAST_BITS:
        return "hnsw"
    fits = graph_bytes(rows, model, "hnsw") * 6 // 5 <= limit * MEGABYTE
    return "hnsw" if fits and model.dim <= MOST_DIMENSIONS[model.storage] else "hnsw-binary"


def indexed_as(model: StoredModel, method: str) -> str:
    """The type of what an index holds: bits, or what the column holds."""
    return "bit" if method == "hnsw-binary" else model.storage


def parameters(model: StoredModel, method: str, rows: int) -> dict[str, int]:
    """What an index is built with: a graph's neighbours and candidates, or the number of lists."""
    if method == "ivfflat":
        return {"lists": max(1, rows // LISTS if rows <= LISTS**2 else math.isqrt(rows))}
    return {name: int(model.index_wanted[name]) for name in ("m", "ef_construction")}


def vector_bytes(kind: str, dim: int) -> int:
    """The bytes of a stored vector without its header."""
    return {"halfvec": 2 * dim, "vector": 4 * dim, "bit": dim // 8}[kind]


def graph_bytes(rows: int, model: StoredModel, method: str) -> int:
    """The memory to build an index in: vectors, neighbour lists and pgvector's bookkeeping; of lists, the centres."""
    size = vector_bytes(indexed_as(model, method), model.dim)
    if method == "ivfflat":
        lists = parameters(model, method, rows)["lists"]
        return lists * (size * (50 + 1) + 4 * lists)  # 50 samples for each, and the distances between centres
    return rows * (size + int(model.index_wanted["m"]) * 2 * 16 + 256)


def memory_for(rows: int, model: StoredModel, method: str, limit: int) -> int:
    """Megabytes of maintenance_work_mem for a build: the graph and a fifth, at least 64 and at most ``limit``."""
    return max(64, min(limit, graph_bytes(rows, model, method) * 6 // 5 // MEGABYTE))


def memory_limit(connection: Connection, *, remote: bool) -> int:
    """Megabytes that a build may take where nobody says: a quarter of the server's memory.

    Of a server elsewhere we see only what it was told: effective_cache_size is about half of its memory on managed
    servers, and 4 GB where nobody has set it.
    """
    if not remote:
        return machine_memory() // 4
    row = connection.execute(
        "select greatest(pg_size_bytes(current_setting('maintenance_work_mem')), "
        "pg_size_bytes(current_setting('effective_cache_size')) / 2)"
    ).fetchone()
    assert row is not None
    return int(row[0]) // MEGABYTE


def index_row_bytes(model: StoredModel, method: str) -> float:
    """Bytes of an index for each row, as pages hold them: an element of a graph and its neighbours, or of a list.

    Source: pgvector, HnswElementTupleData and HnswNeighborTupleData.
    """
    vector = 8 + vector_bytes(indexed_as(model, method), model.dim)
    if method == "ivfflat":
        entry = aligned(8 + vector) + ITEM
    else:
        entry = aligned(72 + vector) + ITEM + aligned(12 + 6 * 2 * int(model.index_wanted["m"])) + ITEM
    return PAGE / max(1, (PAGE - PAGE_HEAD - 8) // entry)


def aligned(size: int) -> int:
    """To eight bytes, as Postgres lays rows out."""
    return -(-size // 8) * 8
