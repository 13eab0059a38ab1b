"""What an index holds and takes: its method, its bytes, and the memory to build it with. No index is touched here."""

import math

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.memory import MEGABYTE, machine_memory
from pgimgsearch.database.models import StoredModel

MOST_DIMENSIONS = {"halfvec": 4000, "vector": 2000, "bit": 64000, "sbq": 16000}  # that pgvector and pgvectorscale index
ROUGH = {"hnsw-binary", "diskann"}  # methods that hold vectors roughly and choose candidates, which are measured anew
SBQ_NEIGHBOURS = 50  # of an element of a diskann graph (pgvectorscale: num_neighbors)
LEAST_BITS = 256  # of fewer dimensions the bits alone say too little
PAGE, PAGE_HEAD, ITEM = 8192, 24, 4  # bytes of a page of Postgres, of its header, of a pointer to a row
LISTS = 1000  # rows of a list, up to a million rows (pgvector: README, IVFFlat)
LEAST_ROWS = 2000  # for a mean that bits are cut at, and for lists


def method_of(model: StoredModel) -> str:
    """The method that a model's index is wanted with; by bits where the column has too many dimensions for another."""
    wanted: str = model.index_wanted["method"]
    if wanted == "none" or model.dim <= MOST_DIMENSIONS[indexed_as(model, wanted)]:
        return wanted
    return "hnsw-binary" if model.dim <= MOST_DIMENSIONS["bit"] else "none"


def suitable(model: StoredModel, rows: int, limit: int) -> str:
    """The method for so many rows where a build may take ``limit`` megabytes: bits where the graph would not fit."""
    if model.storage == "bit" or model.dim < LEAST_BITS:
        return "hnsw"
    fits = graph_bytes(rows, model, "hnsw") * 6 // 5 <= limit * MEGABYTE
    return "hnsw" if fits and model.dim <= MOST_DIMENSIONS[model.storage] else "hnsw-binary"


def instead_of_bits(model: StoredModel, *, diskann: bool) -> list[str]:
    """What to try where bits find too little; ``diskann`` is whether the database has the index of pgvectorscale."""
    there = {"diskann": diskann, "hnsw": True}
    return [name for name, has in there.items() if has and model.dim <= MOST_DIMENSIONS[indexed_as(model, name)]]


def indexed_as(model: StoredModel, method: str) -> str:
    """The type of what an index holds: bits, two bits an element (statistical binary quantisation), or the column's."""
    return {"hnsw-binary": "bit", "diskann": "sbq"}.get(method, model.storage)


def needs_rows(model: StoredModel) -> bool:
    """Whether the wanted index is fitted on what is stored, and would stay poor when more comes."""
    return method_of(model) in {*ROUGH, "ivfflat"}


def is_too_few(model: StoredModel, rows: int) -> bool:
    """Whether there are too few rows for the wanted index."""
    return needs_rows(model) and rows < LEAST_ROWS


def parameters(model: StoredModel, method: str, rows: int, limit: int) -> dict[str, int]:
    """What an index is built with: a graph's neighbours and candidates, or lists that fit in ``limit`` megabytes."""
    if method == "ivfflat":
        lists = max(1, rows // LISTS if rows <= LISTS**2 else math.isqrt(rows))
        while lists > 1 and _lists_bytes(lists, model) > limit * MEGABYTE:
            lists = lists * 3 // 4
        return {"lists": lists}
    if method == "diskann":
        return {"num_neighbors": SBQ_NEIGHBOURS}
    return {name: int(model.index_wanted[name]) for name in ("m", "ef_construction")}


def vector_bytes(kind: str, dim: int) -> int:
    """The bytes of a stored vector without its header."""
    return {"halfvec": 2 * dim, "vector": 4 * dim, "bit": dim // 8, "sbq": dim // (4 if dim < 900 else 8)}[kind]


def graph_bytes(rows: int, model: StoredModel, method: str) -> int:
    """The memory to build a graph in: vectors, neighbour lists and pgvector's bookkeeping."""
    size = vector_bytes(indexed_as(model, method), model.dim)
    neighbours = SBQ_NEIGHBOURS if method == "diskann" else 2 * int(model.index_wanted["m"])
    return rows * (size + neighbours * 16 + 256)


def memory_for(rows: int, model: StoredModel, method: str, limit: int) -> int:
    """Megabytes of maintenance_work_mem for a build: what it takes and a fifth, at least 64 and at most ``limit``."""
    if method == "ivfflat":
        size = _lists_bytes(parameters(model, method, rows, limit)["lists"], model)
    else:
        size = graph_bytes(rows, model, method)
    return max(64, min(limit, size * 6 // 5 // MEGABYTE))


def _lists_bytes(lists: int, model: StoredModel) -> int:
    """The memory of k-means over a sample: vectors, centres, bounds and distances (pgvector: ElkanKmeans)."""
    size, sample = vector_bytes(model.storage, model.dim) + 8, max(10_000, 50 * lists)
    return sample * (size + 4 * lists) + lists * (2 * size + 4 * model.dim + 4 * lists)


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

    Source: pgvector, HnswElementTupleData and HnswNeighborTupleData; for pgvectorscale 0.9 what was measured.
    """
    vector = 8 + vector_bytes(indexed_as(model, method), model.dim)
    if method == "diskann":
        entry = aligned(32 + vector + 8 * SBQ_NEIGHBOURS) + ITEM
    elif method == "ivfflat":
        entry = aligned(8 + vector) + ITEM
    else:
        entry = aligned(72 + vector) + ITEM + aligned(12 + 6 * 2 * int(model.index_wanted["m"])) + ITEM
    room = PAGE - PAGE_HEAD - 8
    return PAGE / (room // entry) if entry <= room else 2.0 * PAGE  # an element and its neighbours on a page each


def aligned(size: int) -> int:
    """To eight bytes, as Postgres lays rows out."""
    return -(-size // 8) * 8
