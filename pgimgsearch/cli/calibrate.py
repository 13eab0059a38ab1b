"""``models calibrate``: thresholds measured on the user's own images."""

from pathlib import Path
from typing import Annotated

import typer

from pgimgsearch.cli.stored import stored_model
from pgimgsearch.cli.terminal import CollectionOption, DeviceOption, TrustOption, terminal_of
from pgimgsearch.database.connection import connect
from pgimgsearch.database.url import database_url

LITTLE = 0.4  # of the edits found, from which people should think again


def calibrate(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model's name or an alias.")] = "duplicates",
    precision: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="The share of near pairs that must be copies.")
    ] = 0.9,
    similar_precision: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="The share of similar pairs that must be copies.")
    ] = 0.8,
    copies: Annotated[
        float, typer.Option(min=0.0001, max=1, help="The share of your images that you expect to have a copy.")
    ] = 0.1,
    sample: Annotated[int, typer.Option(min=20, help="The number of images to make edited copies of.")] = 100,
    compared: Annotated[int, typer.Option(min=20, help="The number of images to compare with all others.")] = 5000,
    collection: CollectionOption = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot, as PNG.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML report with the plot and the hardest pairs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and store nothing.")] = False,
    device: DeviceOption = "auto",
    trust: TrustOption = False,
) -> None:
    """Measure the duplicate thresholds on your own images, and what they find and miss."""
    from pgimgsearch.duplicates import calibrate as measuring
    from pgimgsearch.duplicates import calibration_report as drawing
    from pgimgsearch.embeddings.registry import open_model
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint

    terminal = terminal_of(context)
    request = measuring.CalibrationRequest(precision, similar_precision, copies, sample, compared, collection)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = stored_model(connection, name)
        model = open_model(connection, stored.name, Checkpoint(trust=trust), Placement(device))
        with terminal.report("edit and embed", sample) as reporter:
            found = measuring.calibrate(connection, model, request, reporter)
        if plot is not None:
            plot.write_bytes(drawing.png(found, stored.name))
        if html is not None:
            drawing.write_page(connection, found, stored.name, html)
        if found.problem is not None:
            raise found.problem
        if not dry_run:
            measuring.store(connection, stored, found)
    summary = measuring.summary(found)
    if terminal.settings.json:
        terminal.show_one(summary | {"model": stored.name, "collection": collection, "stored": not dry_run})
        return
    kinds = [kind for kind in ("near", "similar") if summary[kind]]
    terminal.show([{"threshold": kind, **summary[kind]} for kind in kinds],
                  ["threshold", "value", "precision", "recall", "false_pairs", "false_pairs_at_most"])  # fmt: skip
    terminal.write("")
    recall = summary["recall"]
    terminal.show([{"edit": edit, **{kind: recall[kind][edit] for kind in kinds}} for edit in recall["near"]],
                  ["edit", *kinds])  # fmt: skip
    if summary["near"]["recall"] < LITTLE:
        terminal.notify(
            f"warning: near finds only {summary['near']['recall']:.2f} of the edits; judge the pairs that keep it high "
            "(--html), or measure on more images"
        )
    if "similar" not in kinds:
        terminal.notify("no threshold for similar pairs: below near, too few are of the same scene")
    terminal.notify(
        f"{stored.name}: {found.images} images, {found.edited} of them edited, {found.compared} compared with all; "
        f"{found.negatives.copies} pairs left out as copies; copies expected: {copies:.0%} of the images"
    )
    terminal.notify("nothing was changed" if dry_run else f"duplicates are near from {summary['near']['value']:.4g} on")
