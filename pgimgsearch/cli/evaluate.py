"""``pgimgsearch evaluate``: how good models are, on the user's own images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgimgsearch.cli.terminal import (
    DeviceOption,
    TemplateOption,
    Terminal,
    TrustOption,
    join_templates,
    parse_filter,
    terminal_of,
)
from pgimgsearch.database.connection import connect
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import UsageError
from pgimgsearch.evaluation.protocols import BY_NAME, PROTOCOLS

if TYPE_CHECKING:
    from pgimgsearch.evaluation.run import Evaluation

HELP = "\n\n".join([
    "Evaluate models against ground truth, reusing stored vectors.",
    "Protocols, and where they come from:",
    *(f"{protocol.name}: {protocol.what} ({protocol.source})." for protocol in PROTOCOLS),
])  # fmt: skip


def evaluate(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(help="A folder or a list of images, embedded where they are new. Default: the database."),
    ] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", "-p", help="The protocol.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model; several are compared. Default: the alias default."),
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", "-c", help="Only this collection; with a folder, the collection to ingest it into."
        ),
    ] = None,
    filter_json: Annotated[
        str | None,
        typer.Option("--filter", help="Only images with this metadata, as JSON."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="What names the class or group: folder, a metadata key, or a pattern.")
    ] = None,
    min_images: Annotated[
        int | None,
        typer.Option(min=1, help="The smallest class or group to query. Default: 2, or 1 for text protocols."),
    ] = None,
    template: TemplateOption = None,
    captions: Annotated[Path | None, typer.Option(help="Captions: COCO or Karpathy JSON, Flickr, CSV.")] = None,
    split: Annotated[str | None, typer.Option(help="Only captions of this split.")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="CSV of query_id,reference_id; of two paths; or of path,group.")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="The folder of references, if not found.")] = None,
    queries: Annotated[Path | None, typer.Option(help="The folder of queries, if not found.")] = None,
    background: Annotated[Path | None, typer.Option(help="Images to normalise on. Default: train/.")] = None,
    limit_references: Annotated[
        int | None, typer.Option(min=1, help="Use only the first N references, by name.")
    ] = None,
    score_norm: Annotated[
        int | None, typer.Option(min=1, help="Subtract the mean similarity to the N nearest background images.")
    ] = None,
    whiten: Annotated[int | None, typer.Option(min=1, help="Whiten to N dimensions, fitted on the background.")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Evaluate these predictions instead of models: CSV of query_id,reference_id,score."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Process at most N images.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Use a random sample of N queries.")] = None,
    count: Annotated[
        int, typer.Option("--count", "-k", min=1, max=999, help="The number of neighbours, for index.")
    ] = 10,
    require: Annotated[
        list[str] | None, typer.Option(help='Fail unless reached: "r@1>=0.6", or "dinov3:r@1>=0.6".')
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML report with curves and images.")] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Show past evaluations instead; --protocol and --model filter them.")
    ] = False,
    device: DeviceOption = "auto",
    trust: TrustOption = False,
) -> None:
    """Evaluate, show and keep the figures (HELP is what the user reads)."""
    from pgimgsearch.evaluation import report as page  # NumPy and Pillow
    from pgimgsearch.evaluation import run
    from pgimgsearch.evaluation.context import EvaluationRequest
    from pgimgsearch.evaluation.requirements import check, parse

    terminal = terminal_of(context)
    if history and protocol in {None, *BY_NAME}:
        _show_history(terminal, protocol, model or [])
        return
    if protocol not in BY_NAME:
        raise UsageError(f"unknown protocol: {protocol or '(none)'}", hint=f"--protocol takes: {', '.join(BY_NAME)}")
    asked = BY_NAME[protocol]
    if html is not None:
        page.check(html)
    names = tuple(model or (() if predictions else asked.models))
    request = EvaluationRequest(
        names, data, collection, parse_filter(filter_json), limit, sample, key, min_images, join_templates(template),
        captions, split, truth, references, queries, background, limit_references, score_norm, whiten, count,
    )  # fmt: skip
    named = (predictions.name,) if predictions else names
    required = parse(require or [], named, run.figures_of(asked, request))
    with database_url(terminal.settings) as url, terminal.report(asked.name, None) as reporter:
        if predictions is not None:
            found = run.evaluate_file(url, asked, request, predictions, reporter)
        else:
            found = run.evaluate(url, asked, request, device=device, trust=trust, reporter=reporter)
    _show(terminal, found)
    if html is not None:
        page.write(found, html)
    reached = ({figure: own.value for figure, own in result.figures.items()} for result in found.results)
    check(required, dict(zip(named, reached, strict=True)))


def _show(terminal: Terminal, found: "Evaluation") -> None:
    from pgimgsearch.evaluation.run import differences, summary

    whole = summary(found)
    if terminal.settings.json:
        terminal.show_one(whole)
        return
    models = whole["models"]
    rows = [
        {"figure": name} | {model["model"]: _figure(model, name) for model in models} for name in models[0]["figures"]
    ]
    for name in models[0]["numbers"]:
        rows.append({"figure": name} | {model["model"]: _plain(model["numbers"][name]) for model in models})
    for name in ("images_per_second", "query_ms"):
        if any(model[name] is not None for model in models):
            rows.append({"figure": name.replace("_", " ")} | {model["model"]: _plain(model[name]) for model in models})
    rows += [
        {"figure": f"published {name}"} | {model["model"]: _plain(model["published"].get(name)) for model in models}
        for name in dict.fromkeys(name for model in models for name in model["published"])
    ]
    columns = ["figure", *(model["model"] for model in models)]
    terminal.show(rows, columns, columns)
    terminal.notify(
        f"{found.protocol.name} ({found.protocol.source}), {models[0]['questions']} questions; 95% intervals"
    )
    for line in differences(found):
        terminal.notify(line)
    for model in models:
        if model["before"] is not None:
            terminal.notify(_told_before(model))


def _figure(model: dict[str, Any], name: str) -> str:
    own = model["figures"][name]
    if own["value"] is None:
        return "no number"
    return f"{own['value']:.4f} ({own['low']:.3f} to {own['high']:.3f})"


def _told_before(model: dict[str, Any]) -> str:
    before = model["before"]
    changes = [
        f"{name} {own['value'] - then['value']:+.4f}"
        for name, own in model["figures"].items()
        if (then := before["figures"].get(name)) and None not in (own["value"], then["value"])
    ]
    other = "" if before["same_model"] else ", with other weights or preprocessing"
    return f"{model['model']} since {before['evaluated_at']:%Y-%m-%d %H:%M}{other}: {', '.join(changes)}"


def _show_history(terminal: Terminal, protocol: str | None, models: list[str]) -> None:
    from pgimgsearch.embeddings.registry import find_stored
    from pgimgsearch.evaluation.history import recent_runs

    with database_url(terminal.settings) as url, connect(url) as connection:
        named = [found.name if (found := find_stored(connection, name)) else name for name in models]
        rows = recent_runs(connection, protocol, named, 50)
    if not terminal.settings.json:
        rows = [
            row | {"figures": ", ".join(f"{name} {_plain(own['value'])}" for name, own in row["figures"].items())}
            for row in rows
        ]
    terminal.show(rows, ["evaluation_id", "evaluated_at", "protocol", "data", "model", "options", "figures"])


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
