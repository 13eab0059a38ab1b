"""Run every measurement, one after the other: nothing else should run meanwhile. Embedder needs apt-get and gcc,
the peers of duplicates and copies PyPI, and copies and disc21 the photos of PGIMGSEARCH_TEST_DATA.
"""

from benchmarks import (
    copies,
    disc21,
    duplicates,
    embedder,
    filters,
    index_build,
    memory,
    query,
    startup,
    switch,
    write_path,
)

if __name__ == "__main__":
    for measurement in (
        startup, write_path, query, filters, index_build, memory, duplicates, copies, disc21, embedder, switch,
    ):  # fmt: skip
        measurement.main()
