"""``models switch``, ``fill``, ``rollback``, ``compare``: another model behind an alias of a database that serves."""

from pathlib import Path
from typing import Annotated

import typer

from pgimgsearch.cli.terminal import (
    DeviceOption,
    PreprocessOption,
    RevisionOption,
    TorchDtypeOption,
    TrustOption,
    WeightsOption,
    terminal_of,
)
from pgimgsearch.database.connection import connect
from pgimgsearch.database.models import coverage_table
from pgimgsearch.database.url import database_url

MaxLoadOption = Annotated[
    float, typer.Option(min=0.01, max=1, help="The share of this machine's cores, or of the device, to use.")
]
AliasArgument = Annotated[str, typer.Argument(help="default, text, duplicates, or one of your own.")]
SampleOption = Annotated[
    int, typer.Option(min=1, max=10000, help="The size of the random sample of images to measure with.")
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", help="Write an HTML report of the images on which the models disagree most.")
]


def switch(
    context: typer.Context,
    alias: AliasArgument,
    to: Annotated[str, typer.Option(help="The new model; it is added if necessary.")],
    allow_missing: Annotated[int, typer.Option(min=0, help="The number of contents that may lack a vector.")] = 0,
    recall: Annotated[float, typer.Option(min=0, max=1, help="The recall that its index must reach.")] = 0.95,
    sample: SampleOption = 100,
    max_load: MaxLoadOption = 1.0,
    html: HtmlOption = None,
    weights: WeightsOption = None,
    revision: RevisionOption = None,
    preprocess: PreprocessOption = None,
    trust: TrustOption = False,
    device: DeviceOption = "auto",
    dtype: TorchDtypeOption = "auto",
) -> None:
    """Embed all stored images with another model, index and verify it, then move the alias."""
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.operations import switch as switching

    terminal = terminal_of(context)
    request = switching.SwitchRequest(
        alias, to, allow_missing, recall, sample, max_load, bool(terminal.settings.db),
        Checkpoint(weights, revision, preprocess, trust), Placement(device, dtype), html,
    )  # fmt: skip
    with database_url(terminal.settings) as url, terminal.report(f"switch {alias}", None) as reporter:
        done = switching.switch(url, request, reporter)
    terminal.show_one({
        "alias": done.alias, "was": done.old, "is": done.new, "contents": done.coverage.contents,
        "embedded": done.coverage.embedded, "skipped": done.coverage.skipped, "missing": done.coverage.missing,
        "recall": done.recall, "overlap": done.overlap, "texts": done.texts.carried,
        "texts_refused": len(done.texts.refused), "locked_ms": round(done.milliseconds, 1),
    })  # fmt: skip
    if done.texts.refused:
        first = ", ".join(f'"{text}"' for text in done.texts.refused[:5])
        terminal.notify(f"texts that {done.new} cannot read are an error from now on: {first}")
    if done.coverage.missing > allow_missing:
        terminal.notify(f"some came in the last moments: pgimgsearch models fill {done.new}")
    if done.old not in {None, done.new}:
        terminal.notify(f"back: pgimgsearch models rollback {alias}; once it is not needed: models remove {done.old}")


def fill(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A stored model's name or an alias.")],
    max_load: MaxLoadOption = 1.0,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Larger images fail, undecoded.")] = 100,
    max_megabytes: Annotated[float, typer.Option(min=0.01, help="Larger files fail, unread.")] = 256,
    weights: WeightsOption = None,
    preprocess: PreprocessOption = None,
    trust: TrustOption = False,
    device: DeviceOption = "auto",
    dtype: TorchDtypeOption = "auto",
) -> None:
    """Embed all stored images that a model has no vector for, from their original files."""
    from pgimgsearch.ingest.backfill import fill_stored
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.sources.limits import ImageLimits

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, terminal.report(f"fill {name}", None) as reporter:
        stored, covered = fill_stored(
            url, name, Checkpoint(weights, preprocess=preprocess, trust=trust), Placement(device, dtype),
            max_load=max_load, limits=ImageLimits(int(max_megapixels * 1e6), int(max_megabytes * 1e6)),
            reporter=reporter,
        )  # fmt: skip
    terminal.show_one({"model": stored, "contents": covered.contents, "embedded": covered.embedded,
                       "skipped": covered.skipped, "missing": covered.missing})  # fmt: skip
    if covered.missing:
        terminal.notify("why some are missing: select * from imgsearch.ingest_failure")


def rollback(context: typer.Context, alias: AliasArgument) -> None:
    """Point an alias at its previous model, at once; run it again to undo the rollback."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        row = connection.execute("select imgsearch.rollback_alias(%s)", [alias]).fetchone()
        assert row is not None
        missing = next(r["missing"] for r in coverage_table(connection, exact=False) if r["model"] == row[0])
    terminal.show_one({"alias": alias, "is": row[0], "missing": missing})
    if missing:
        terminal.notify(f"about {missing} contents came without {row[0]}: pgimgsearch models fill {row[0]}")


def compare(
    context: typer.Context,
    one: Annotated[str, typer.Argument(help="A stored model's name or an alias.")],
    other: Annotated[str, typer.Argument(help="The other model.")],
    key: Annotated[str | None, typer.Option(help="A metadata key that names the class of an image.")] = None,
    sample: SampleOption = 200,
    html: HtmlOption = None,
    device: DeviceOption = "auto",
    trust: TrustOption = False,
) -> None:
    """Compare two models on stored images: results, quality and cost."""
    from pgimgsearch.operations import compare as comparing

    terminal = terminal_of(context)
    request = comparing.CompareRequest(one, other, key, sample, html, device, trust)
    with database_url(terminal.settings) as url, terminal.report("compare", None) as reporter:
        found = comparing.compare(url, request, reporter)
    columns = ["measure", *found.models, "both", "difference"]
    told = [dict(zip(columns, row.cells(), strict=True)) for row in found.rows]
    terminal.show(
        [row.as_dict(found.models) for row in found.rows] if terminal.settings.json else told, columns, columns
    )
