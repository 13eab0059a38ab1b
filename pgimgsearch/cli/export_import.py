"""``export`` and ``import``: embeddings as Parquet."""

from typing import Annotated

import typer

from pgimgsearch.cli import ingest_report
from pgimgsearch.cli.terminal import ModelOption, ShadowTableOption, terminal_of
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import UsageError


def export(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="A Parquet file, or its URL in an object store.", metavar="FILE")],
    model: ModelOption = "default",
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only this collection.")] = None,
) -> None:
    """Write a model's images and vectors to a Parquet file."""
    from pgimgsearch.operations import export_import as transfer

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, terminal.report(f"export {target}", None) as reporter:
        rows = transfer.export(url, model, target, collection, reporter)
    terminal.show_one({"file": target, "images": rows})


def import_(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(help="Files that export wrote, or their URLs.", metavar="FILE...")],
    shadow_table: ShadowTableOption = None,
    index: Annotated[bool, typer.Option("--index/--no-index", help="Build missing indexes at the end.")] = True,
) -> None:
    """Import what export wrote: images and vectors. It needs neither the image files nor the model."""
    from pgimgsearch.operations.export_import import import_files

    terminal = terminal_of(context)
    if shadow_table and not index:
        raise UsageError("--no-index would leave a shadow table out of searches", hint="leave one of both options out")
    with database_url(terminal.settings) as url:
        with terminal.report("import", None) as reporter:
            found = import_files(url, files, shadow=shadow_table if index else False, reporter=reporter)
        if index:
            ingest_report.complete_loads(terminal, url, list(dict.fromkeys(one.model for one in found)))
    rows = [{"file": file, "model": one.model, "images": one.images, "skipped": one.skipped, "different": one.different}
            for file, one in zip(files, found, strict=True)]  # fmt: skip
    terminal.show(rows, ["file", "model", "images", "skipped", "different"])
