"""Run every measurement, one after the other: nothing else should run meanwhile. ``--quick`` takes six of them, smaller.

Embedder needs apt-get and gcc, the peers of duplicates, copies, end_to_end and index_methods and the profile PyPI, and
stages, copies, disc21, profile and end_to_end the photos of PGIMGSEARCH_TEST_DATA; one that cannot run is named, and the
others go on. Prints the results in Markdown, and keeps each in results/, and all of them in results/history.jsonl;
``make docs`` writes them into docs/benchmarks.md.
"""

import importlib
import sys
import traceback

from benchmarks.document import section
from benchmarks.harness import QUICK, results

SUITE = (
    "startup", "write_path", "query", "filters", "index_build", "index_methods", "shadow_table", "memory", "stages", "end_to_end",
    "profile", "duplicates", "copies", "disc21", "embedder", "switch", "scale",
)  # fmt: skip
QUICKLY = ("startup", "write_path", "query", "index_build", "stages", "end_to_end")


def main() -> int:
    """Run them; the exit code is the number of those that could not run."""
    failed = []
    for name in QUICKLY if QUICK else SUITE:
        try:
            importlib.import_module(f"benchmarks.{name}").main()
        except Exception:
            traceback.print_exc()
            failed.append(name)
    print("\n", *map(section, results()), sep="\n")
    for name in failed:
        print(f"could not run: {name}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
