"""Run every measurement, one after the other: nothing else should run meanwhile."""

from benchmarks import index_build, memory, query, startup, write_path

if __name__ == "__main__":
    for measurement in (startup, write_path, query, index_build, memory):
        measurement.main()
