"""``export`` and ``import``: embeddings as Parquet."""

from typing import Annotated

import typer

from pgimgsearch.cli import ingest_report
from pgimgsearch.cli.ingest_report import BESIDE
from pgimgsearch.cli.terminal import AsideOption, ModelOption, terminal_of
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import UsageError


def export(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="A Parquet file, or its address in a store.", metavar="FILE")],
    model: ModelOption = "default",
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Of one collection alone.")] = None,
) -> None:
    """Write a model's images and vectors to a Parquet file."""
    from pgimgsearch.operations import export_import as transfer

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, terminal.progress(f"export {target}", None) as bar:
        rows = transfer.export(url, model, target, collection, lambda done: bar(done, None))
    terminal.show_one({"file": target, "images": rows})


def bring(
    context: typer.Context,
    places: Annotated[list[str], typer.Argument(help="Files that export made, or their addresses.", metavar="FILE...")],
    aside: AsideOption = None,
    index_after: Annotated[bool, typer.Option("--index/--no-index", help="Build missing indexes at the end.")] = True,
) -> None:
    """Bring in what export wrote: images and vectors, without pictures or a model at hand."""
    from pgimgsearch.operations import export_import as transfer

    terminal = terminal_of(context)
    if aside and not index_after:
        raise UsageError("--aside with --no-index would never be seen", hint="leave one of them out")
    with database_url(terminal.settings) as url:
        with terminal.progress("import", None) as bar:
            found = transfer.bring(
                url, places, lambda done: bar(done, None), wished=aside if index_after else False,
                beginning=lambda name: terminal.talk(BESIDE.format(name)),
            )  # fmt: skip
        if index_after:
            names = list(dict.fromkeys(one.model for one in found))
            ingest_report.build_indexes(terminal, url, names)
    rows = [{"file": place, "model": one.model, "images": one.images, "skipped": one.skipped}
            for place, one in zip(places, found, strict=True)]  # fmt: skip
    terminal.show(rows, ["file", "model", "images", "skipped"])
