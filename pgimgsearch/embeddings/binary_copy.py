"""Vectors as Postgres reads and writes them: text literals, and rows of the binary format of COPY.

Sources: PostgreSQL, sql-copy, "Binary Format"; pgvector, ``halfvec_recv``, ``vector_recv`` and their counterparts;
PostgreSQL, ``bit_recv``.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
TRAILER = struct.pack(">h", -1)


def as_column(vectors: NDArray[Any], storage: str) -> NDArray[Any]:
    """Vectors in the type of their column: packed bits (uint8), float16 or float32."""
    if storage == "bit":
        return np.packbits(vectors, axis=1)
    with np.errstate(over="ignore"):
        return vectors.astype(np.float16 if storage == "halfvec" else np.float32)


def literal(vector: NDArray[Any], storage: str = "vector") -> str:
    """A vector or a hash in the text form that Postgres reads."""
    if storage == "bit":
        return "".join(map(str, vector.tolist()))
    return "[" + ",".join(map(repr, np.asarray(vector).astype(float).tolist())) + "]"


def encode_rows(keys: NDArray[Any], vectors: NDArray[Any], dim: int) -> bytes:
    """A whole COPY of (key, vector) rows.

    ``keys`` are int32 for int4 or int64 for int8. ``vectors`` is (n, dim) float16 for halfvec, (n, dim) float32 for
    vector, (n, dim / 8) uint8 for bit.
    """
    rows = np.zeros(len(keys), dtype=row_type(keys.dtype, vectors.dtype, vectors.shape[1]))
    rows["fields"], rows["key_bytes"], rows["key"] = 2, keys.itemsize, keys
    rows["value_bytes"], rows["dim"], rows["values"] = 4 + vectors.shape[1] * vectors.itemsize, dim, vectors
    return HEADER + rows.tobytes() + TRAILER


def row_type(key: np.dtype[Any], value: np.dtype[Any], width: int) -> np.dtype[np.void]:
    """One row: the key, and a vector of ``width`` elements (of bits: bytes) behind its dimension."""
    dim = [("dim", ">i4")] if value == np.uint8 else [("dim", ">i2"), ("unused", ">i2")]
    return np.dtype(
        [("fields", ">i2"), ("key_bytes", ">i4"), ("key", key.newbyteorder(">")), ("value_bytes", ">i4"), *dim,
         ("values", value.newbyteorder(">"), (width,))]
    )  # fmt: skip


def decode_rows(buffer: bytearray, storage: str, dim: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Take the whole rows out of a buffer: keys (int8), and (n, dim) float32; bits become -1 and 1."""
    row = stored_row_type(storage, dim)
    size = len(buffer) // row.itemsize * row.itemsize
    rows = np.frombuffer(bytes(buffer[:size]), row)
    del buffer[:size]
    values = rows["values"]
    if storage == "bit":
        values = np.unpackbits(values, axis=1).astype(np.float32) * 2 - 1
    return rows["key"].astype(np.int64), values.astype(np.float32)


def stored_row_type(storage: str, dim: int) -> np.dtype[np.void]:
    """The row of a model's table: content_id and embedding."""
    value = {"halfvec": np.float16, "vector": np.float32, "bit": np.uint8}[storage]
    return row_type(np.dtype(np.int64), np.dtype(value), dim // 8 if storage == "bit" else dim)
