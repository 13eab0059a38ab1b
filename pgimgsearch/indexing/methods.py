"""What an index takes: its method, its size on disk, and the memory to build it with. No index is touched here."""

from dataclasses import dataclass

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.memory import MEGABYTE, machine_memory
from pgimgsearch.database.models import StoredModel

MAX_DIMENSIONS = {"halfvec": 4000, "vector": 2000, "bit": 64000}  # that pgvector's HNSW indexes
MIN_BITS = 256  # with fewer dimensions, bits alone say too little
MIN_ROWS = 2000  # for a mean to quantize around
PAGE, PAGE_HEAD, ITEM = 8192, 24, 4  # bytes of a page of Postgres, of its header, of a pointer to a row


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """The index that a model should have: its method and parameters, for vectors of a dimension and column type."""

    dim: int
    storage: str
    wanted: str
    m: int
    ef_construction: int

    @property
    def method(self) -> str:
        """The method to build with: bits where the column has too many dimensions for another."""
        if self.wanted == "none" or self.dim <= MAX_DIMENSIONS[self.indexed_type(self.wanted)]:
            return self.wanted
        return "hnsw-binary" if self.dim <= MAX_DIMENSIONS["bit"] else "none"

    @property
    def needs_rows(self) -> bool:
        """Whether the index is fitted to stored rows, so that one built too early would stay poor."""
        return self.method == "hnsw-binary"

    def is_too_few(self, rows: int) -> bool:
        """Whether there are too few rows to build the index."""
        return self.needs_rows and rows < MIN_ROWS

    def indexed_type(self, method: str) -> str:
        """The type that an index of a method holds: bits, or that of the column."""
        return "bit" if method == "hnsw-binary" else self.storage


def index_spec(model: StoredModel) -> IndexSpec:
    """The index that a stored model should have."""
    spec = model.index_spec
    return IndexSpec(model.dim, model.storage, spec["method"], int(spec["m"]), int(spec["ef_construction"]))


def suitable_method(spec: IndexSpec, rows: int, limit: int) -> str:
    """The method for so many rows where a build may take ``limit`` megabytes: bits where the graph would not fit."""
    if spec.storage == "bit" or spec.dim < MIN_BITS:
        return "hnsw"
    fits = graph_bytes(rows, spec, "hnsw") * 6 // 5 <= limit * MEGABYTE
    return "hnsw" if fits and spec.dim <= MAX_DIMENSIONS[spec.storage] else "hnsw-binary"


def vector_bytes(kind: str, dim: int) -> int:
    """The bytes of a stored vector without its header."""
    return {"halfvec": 2 * dim, "vector": 4 * dim, "bit": dim // 8}[kind]


def graph_bytes(rows: int, spec: IndexSpec, method: str) -> int:
    """The memory to build a graph in: vectors, neighbour lists and pgvector's bookkeeping."""
    return rows * (vector_bytes(spec.indexed_type(method), spec.dim) + 2 * spec.m * 16 + 256)


def build_memory(rows: int, spec: IndexSpec, method: str, limit: int) -> int:
    """Megabytes of maintenance_work_mem for a build: what it takes plus a fifth, at least 64 and at most ``limit``."""
    return max(64, min(limit, graph_bytes(rows, spec, method) * 6 // 5 // MEGABYTE))


def memory_limit(connection: Connection, *, remote: bool) -> int:
    """Megabytes that a build may take unless the user says: a quarter of the server's memory.

    Of a remote server only its settings are known: effective_cache_size is about half of its memory on managed
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


def index_row_bytes(spec: IndexSpec, method: str) -> float:
    """Bytes of an index for each row, as pages hold them: an element of a graph and its neighbours.

    Source: pgvector, HnswElementTupleData and HnswNeighborTupleData.
    """
    element = aligned(80 + vector_bytes(spec.indexed_type(method), spec.dim))
    entry = element + ITEM + aligned(12 + 6 * 2 * spec.m) + ITEM
    free = PAGE - PAGE_HEAD - 8
    return PAGE / (free // entry) if entry <= free else 2.0 * PAGE  # an element and its neighbours on a page each


def aligned(size: int) -> int:
    """Rounded up to eight bytes, as Postgres lays rows out."""
    return -(-size // 8) * 8
