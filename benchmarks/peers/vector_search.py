"""HNSW of faiss, or LanceDB, on vectors of a file: ``vector_search.py faiss|lancedb VECTORS.npy QUERIES.npy THREADS``.

Prints seconds to build, and for each effort its recall@10 and the median milliseconds of one query after the other.
"""

import json
import sys
import time
from tempfile import TemporaryDirectory

import numpy as np

K = 10
EFFORTS = (40, 100, 200)


def main() -> None:
    """Build, then ask with each effort."""
    name, vectors, queries = sys.argv[1], np.load(sys.argv[2]).astype(np.float32), np.load(sys.argv[3])
    true = np.argsort(-(queries @ vectors.T), axis=1)[:, :K]
    with TemporaryDirectory() as folder:
        seconds, search = {"faiss": faiss_index, "lancedb": lancedb_index}[name](vectors, int(sys.argv[4]), folder)
        rows = []
        for effort in EFFORTS:
            search(queries[0], effort)
            taken, hits = [], []
            for query, expected in zip(queries, true, strict=True):
                start = time.perf_counter()
                found = search(query, effort)
                taken.append(1000 * (time.perf_counter() - start))
                hits.append(len(set(found) & set(expected.tolist())) / K)
            rows.append({"effort": effort, "recall": float(np.mean(hits)), "ms": float(np.median(taken))})
    print(json.dumps({"seconds": seconds, "rows": rows}))


def faiss_index(vectors, threads, _folder):
    """HNSW with the numbers of pgvector, by inner product, in fp16 as halfvec."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWSQ(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 64
    start = time.perf_counter()
    index.train(vectors[:1000])
    index.add(vectors)
    seconds = time.perf_counter() - start

    def search(query, effort):
        index.hnsw.efSearch = effort
        return index.search(query[None], K)[1][0].tolist()

    return seconds, search


def lancedb_index(vectors, _threads, folder):
    """Its HNSW over scalar quantised vectors, with a refinement."""
    import lancedb
    import pyarrow as pa

    table = lancedb.connect(folder).create_table(
        "images", pa.table({"id": np.arange(len(vectors)), "vector": pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.ravel()), vectors.shape[1])})
    )  # fmt: skip
    start = time.perf_counter()
    table.create_index(metric="cosine", index_type="IVF_HNSW_SQ", num_partitions=1, m=16, ef_construction=64)
    seconds = time.perf_counter() - start

    def search(query, effort):
        asked = table.search(query).metric("cosine").ef(effort).refine_factor(2).select(["id"]).limit(K)
        return asked.to_arrow()["id"].to_pylist()

    return seconds, search


if __name__ == "__main__":
    main()
