"""Run every measurement, one after the other: nothing else should run meanwhile. The last needs apt-get and gcc."""

from benchmarks import embedder, filters, index_build, memory, query, startup, write_path

if __name__ == "__main__":
    for measurement in (startup, write_path, query, filters, index_build, memory, embedder):
        measurement.main()
