"""Two models on the user's own images: what they find, how good that is where the truth is known, and what it costs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel, coverage_table
from pgimgsearch.embeddings.registry import get_stored
from pgimgsearch.errors import DriftError, ModelError, UsageError
from pgimgsearch.evaluation.context import EvaluationRequest as Asked
from pgimgsearch.evaluation.protocols import BY_NAME
from pgimgsearch.evaluation.run import Result, evaluate, images_per_second, query_ms
from pgimgsearch.indexing.status import index_status
from pgimgsearch.operations.comparison_report import check, write
from pgimgsearch.operations.neighbour_overlap import NEIGHBOURS, duplicate_agreement, neighbour_pairs, overlap
from pgimgsearch.reporter import Reporter

# Of these figures, the ones that say most; `models compare` is a summary, `evaluate` has the rest.
TOLD = {"classes": ("p@1", "knn"), "instances": ("r@1", "map"), "text-to-image": ("r@1", "r@10")}


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """What to compare: two stored models, the metadata key of classes, and images to draw."""

    one: str
    other: str
    key: str | None = None
    sample: int = 200
    html: Path | None = None
    device: str = "auto"
    trust: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One measure, of each model or of both together.

    ``difference`` is the other less the one, with the low and the high of its 95% interval.
    """

    measure: str
    one: float | None = None
    other: float | None = None
    both: float | None = None
    difference: tuple[float, float, float] | None = None

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """By the models' names, ready for JSON."""
        return {"measure": self.measure, names[0]: self.one, names[1]: self.other, "both": self.both,
                "difference": self.difference and list(self.difference)}  # fmt: skip

    def cells(self) -> list[str]:
        """For a person, in the same order."""
        told = "" if self.difference is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*self.difference)
        numbers = ["" if value is None else f"{value:.4g}" for value in (self.one, self.other, self.both)]
        return [self.measure, *numbers, told]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models by their names, and what they have to do with each other."""

    models: tuple[str, str]
    rows: list[Row]


def compare(url: str, request: CompareRequest, reporter: Reporter) -> Comparison:
    """Compare two models on the images of the database. Raises ModelError where one of them has not embedded them."""
    with connect(url) as connection:
        one, other = get_stored(connection, request.one), get_stored(connection, request.other)
        if one == other:
            raise UsageError(f"{request.one} and {request.other} are the same model", hint="name two: models list")
        if request.html is not None:
            check(request.html)
        seen = neighbour_pairs(connection, one, other, request.sample)
        if not seen:
            raise ModelError(
                f"{one.name} and {other.name} have no image in common",
                hint=f"pgimgsearch models fill {other.name}; pgimgsearch models list says what is missing",
            )
        near_one, near_other, agreement = duplicate_agreement(seen, one, other)
        rows = [
            Row(f"neighbours in common, of {NEIGHBOURS}", both=overlap(seen)),
            Row("near-duplicates among these, by each one's threshold", near_one, near_other),
            Row("share of them that both name", both=agreement),
        ]
        protocols = list(_protocols(connection, request, (one, other)))
    for name, asked in protocols:
        try:
            found = evaluate(url, BY_NAME[name], asked, device=request.device, trust=request.trust, reporter=reporter)
        except DriftError:
            raise
        except ModelError as error:  # one that cannot read a caption, say: the rest is worth knowing
            reporter.say(f"{name} is left out: {error}")
            continue
        rows += _figures(name, found.results)
    names = (one.name, other.name)
    with connect(url) as connection:
        rows += _costs(connection, one, other)
        if request.html is not None:
            table = [["", *names, "both", "difference"], *(row.cells() for row in rows)]
            write(connection, request.html, names, seen, table)
            reporter.say(f"what both models find: {request.html}")
    return Comparison(names, rows)


def _protocols(
    connection: Connection, request: CompareRequest, models: Sequence[StoredModel]
) -> Iterator[tuple[str, Asked]]:
    """The protocols for which the images bring a truth."""
    names = [model.name for model in models]
    if request.key is not None:
        yield "classes", Asked(models=names, key=request.key, sample=request.sample)
    grouped = connection.execute(
        "select exists (select from imgsearch.image where group_key is not null group by group_key "
        "having count(*) > 1), "
        "exists (select from imgsearch.image where caption is not null)"
    ).fetchone()
    if grouped and grouped[0]:
        yield "instances", Asked(models=names, sample=request.sample)
    if grouped and grouped[1] and all(model.has_text for model in models):
        yield "text-to-image", Asked(models=names, sample=request.sample)


def _figures(protocol: str, results: Sequence[Result]) -> Iterator[Row]:
    one, other = results
    for name in TOLD[protocol]:
        first, second = one.figures[name], other.figures[name]
        low, high = second.less(first)
        difference = (second.value - first.value, low, high)
        yield Row(f"{protocol} {name}", first.value, second.value, difference=difference)


def _costs(connection: Connection, one: StoredModel, other: StoredModel) -> Iterator[Row]:
    covered = {row["model"]: row for row in coverage_table(connection, exact=False)}
    sizes = {row["model"]: row for row in index_status(connection)}

    def row(measure: str, of: Callable[[StoredModel], float | None]) -> Row:
        return Row(measure, of(one), of(other))

    yield row("images a second, in the last run", lambda model: images_per_second(connection, model))
    yield row("query, ms", lambda model: query_ms(connection, model))
    yield row("dimensions", lambda model: model.dim)
    yield row("table, MB", lambda model: _megabytes(sizes[model.name], "table_bytes", "index_bytes"))
    yield row("index, MB", lambda model: _megabytes(sizes[model.name], "index_bytes"))
    yield row("contents embedded", lambda model: covered[model.name]["embedded"])
    yield row("contents missing", lambda model: covered[model.name]["missing"])


def _megabytes(sizes: Mapping[str, Any], whole: str, less: str | None = None) -> float:
    return float(sizes[whole] - (sizes[less] if less else 0)) / 1e6
