"""The catalog as the table of docs/models.md: ``python -m pgimgsearch.models.catalog_table`` writes it there."""

from pathlib import Path

from pgimgsearch.models.catalog import CATALOG
from pgimgsearch.models.spec import ModelSpec

BEGIN, END = "<!-- catalog: begin -->", "<!-- catalog: end -->"
PROOFS = {
    "exact": "exact: real weights, or none, give the reference's vectors in the tests",
    "architecture": "architecture: a tiny checkpoint of this architecture gives the reference's vectors in the "
    "tests, and the full-size network on the meta device has this dimension, input size, number of "
    "parameters and these weights; on real weights: pgimgsearch models verify",
    "own": "its architecture is, where the catalog has it; these weights of yours are by: pgimgsearch models verify",
    "none": "not by us; compare it with its library: pgimgsearch models verify",
}


def size_of(spec: ModelSpec) -> str:
    """Four bytes a parameter; what is downloaded may be half of that, or hold more than what is used."""
    megabytes = spec.parameters * 4
    if not megabytes:
        return "none"
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def markdown() -> str:
    """The table."""
    lines = [
        "| name | weights | vector | dim | input | text | fp32 | licence | proof | good for |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for spec in CATALOG:
        also = "".join(f", `@{name}` {dim}" for name, dim in spec.also.items())
        licence = spec.licence + (f"; gated, else `{spec.alternative}`" if spec.gated else "")
        lines.append(
            f"| `{spec.name}` | {_weights(spec)} | {spec.output} | {spec.dim}{also} | {spec.size or 'any'} | "
            f"{'yes' if spec.text else 'no'} | {size_of(spec)} | {licence} | {spec.proof} | {spec.good_for} |"
        )
    return "\n".join(lines)


def insert(document: str) -> str:
    """A document with the table between its marks."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{markdown()}\n{END}{tail}"


def _weights(spec: ModelSpec) -> str:
    if "://" in spec.checkpoint:
        return f"Meta's `{spec.checkpoint.rsplit('/', 1)[-1]}`"
    return "built in" if not spec.parameters else f"{spec.backend} `{spec.checkpoint}`"


if __name__ == "__main__":
    path = Path(__file__).parents[2] / "docs" / "models.md"
    path.write_text(insert(path.read_text()))
    print(path)
