"""docs/benchmarks.md, the only document with measured figures, from figures.json: ``make docs``.

What the last full runs left in results/ replaces the figures of the same name; their commands and notes stay.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS

FIGURES = Path(__file__).parent / "figures.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Ours and a reference run in turn, with nothing else running, as the speed of such machines changes by a quarter from run to
run. So the ratio, the first over the second, is what counts. `make bench` repeats the benchmarks in 70 minutes, `make bench
BENCH=--quick` six of them at a third of the size. Results go to `benchmarks/results/`; `make docs` writes them here.
"""


def main() -> None:
    """Take in the newest results, and write the document."""
    figures = json.loads(FIGURES.read_text())
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if not result["quick"]:
            figures[path.stem] = figures.get(path.stem, {}) | result
    FIGURES.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    DOCUMENT.write_text(document(figures))


def document(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole document: a section for each benchmark."""
    return "\n".join([HEAD, *(section(result) for result in figures.values())])


def section(result: Mapping[str, Any]) -> str:
    """Question, ratio with its aim, a table of the rows, and what a reader has to know."""
    title, _, about = result["question"].partition(": ")
    ratio = "" if result["ratio"] is None else f"Ratio {result['ratio']:.2f}. "
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    lines = [f"## {title}", "", f"{about[0].upper()}{about[1:]}. {ratio}Aim: {result['target']}.", ""]
    lines += [_line(columns), "|" + "---|" * len(columns)]
    lines += [_line([_cell(row.get(column, "")) for column in columns]) for row in result["rows"]]
    if result.get("note"):
        lines += ["", result["note"]]
    machine = result["machine"]
    where = machine if isinstance(machine, str) else ", ".join(f"{name} {value}" for name, value in machine.items())
    command = f"`{result['command']}`; " if "command" in result else ""
    return "\n".join([*lines, "", f"{command}{where}.", ""])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
