"""Run every measurement, one after the other: nothing else should run meanwhile. ``--quick`` takes six of them, smaller.

Embedder needs apt-get and gcc, the peers of duplicates, copies, end_to_end and index_methods and the profile PyPI, and
stages, copies, disc21, profile and end_to_end the photos of PGIMGSEARCH_TEST_DATA; one that cannot run is named, and the
others go on. Prints a table in Markdown and keeps it in results/table.md, each result in results/, and all of them with
machine and versions in results/history.jsonl.
"""

import importlib
import sys
import traceback

from benchmarks.harness import QUICK, RESULTS, machine, results

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
    table = markdown()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "table.md").write_text(table)
    print(f"\n{table}")
    for name in failed:
        print(f"could not run: {name}", file=sys.stderr)
    return len(failed)


def markdown() -> str:
    """The machine, and a line a question."""
    told = ", ".join(f"{name} {value}" for name, value in machine().items())
    lines = [told, "", "| question | ratio | aim | figures |", "|---|---|---|---|"]
    for result in results():
        rows = "; ".join(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
            for row in result["rows"]
        )
        lines.append(f"| {result['question']} | {result['ratio']:.2f} | {result['target']} | {rows} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
