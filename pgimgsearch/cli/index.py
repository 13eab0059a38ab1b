"""``index``: HNSW indexes by hand; ingest builds missing ones by itself."""

from typing import Annotated

import typer

from pgimgsearch.cli.terminal import CountOption, Group, terminal_of
from pgimgsearch.database import index, store
from pgimgsearch.database.address import database_url
from pgimgsearch.database.connection import connect

app = typer.Typer(cls=Group, no_args_is_help=True, help="Indexes: build, drop and look at them.")
Name = Annotated[str, typer.Argument(help="A model's name or an alias.")]


@app.command()
def build(
    context: typer.Context,
    model: Name,
    memory: Annotated[
        int | None, typer.Option(min=64, help="At most so many megabytes. Default: a quarter of the machine.")
    ] = None,
    concurrently: Annotated[
        bool, typer.Option("--concurrently", help="Let others write to the table meanwhile; slower.")
    ] = False,
) -> None:
    """Build a model's HNSW index anew, with the memory that its graph needs."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = store.get_model(connection, model)
        limit = memory or index.memory_limit(remote=bool(terminal.settings.db))
        with terminal.progress(f"index {stored.name}", None) as bar:
            used = index.build(
                connection, stored, memory_limit=limit, concurrently=concurrently,
                report=lambda _, done, total: bar(done, total),
            )  # fmt: skip
    name = index.index_name(stored) if index.is_wanted(stored) else None
    terminal.show_one({"model": stored.name, "index": name, "memory_mb": used})


@app.command()
def drop(context: typer.Context, model: Name) -> None:
    """Drop a model's index; its searches are exact from then on."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = store.get_model(connection, model)
        index.drop(connection, stored)
    terminal.talk(f"dropped {index.index_name(stored)}")


@app.command()
def tune(
    context: typer.Context,
    model: Name,
    recall: Annotated[float, typer.Option(min=0, max=1, help="The share of true neighbours to find.")] = 0.99,
    count: CountOption = 10,
    sample: Annotated[int, typer.Option(min=1, max=10000, help="How many stored vectors to ask with.")] = 200,
) -> None:
    """Find the least ef_search that reaches a recall, and store it with the model."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = store.get_model(connection, model)
        rows = index.tune(connection, stored, recall, count, sample)
        chosen = store.get_model(connection, stored.name).ef_search
    terminal.show([row | {"chosen": row["ef_search"] == chosen} for row in rows],
                  ["ef_search", "recall", "milliseconds", "chosen"])  # fmt: skip


@app.command()
def status(context: typer.Context) -> None:
    """Show each model's index, whether it is valid, and sizes."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        rows = index.status(connection)
    terminal.show(rows, ["model", "method", "valid", "rows", "table_bytes", "index_bytes", "ef_search"])
