"""``index``: indexes by hand; ingest builds missing ones by itself."""

from itertools import pairwise
from typing import Annotated, Literal

import typer

from pgimgsearch.cli.terminal import CountOption, Group, Terminal, terminal_of
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection, connect, has_diskann
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import InterruptedRun, RecallError
from pgimgsearch.indexing import build as index
from pgimgsearch.indexing import methods as sizing
from pgimgsearch.indexing import recall as measuring
from pgimgsearch.indexing import shadow_table as aside
from pgimgsearch.indexing import status as index_status
from pgimgsearch.indexing.index_names import index_name

app = typer.Typer(cls=Group, no_args_is_help=True, help="Indexes: build, drop and look at them.")
Name = Annotated[str, typer.Argument(help="A model's name or an alias.")]
Method = Literal["auto", "hnsw", "hnsw-binary", "ivfflat", "diskann"]
RecallOption = Annotated[float, typer.Option("--recall", min=0, max=1, help="The share of true neighbours to find.")]


@app.command()
def build(
    context: typer.Context,
    model: Name,
    method: Annotated[
        Method | None,
        typer.Option(help="auto: where the graph would not fit in memory bits, or diskann. Default: as before."),
    ] = None,
    recall: RecallOption = measuring.RECALL,
    memory: Annotated[
        int | None, typer.Option(min=64, help="At most so many megabytes. Default: a quarter of the server's.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes of the server. Default: as it is set.")
    ] = None,
    concurrently: Annotated[
        bool, typer.Option("--concurrently", help="Let others write to the table meanwhile; slower.")
    ] = False,
) -> None:
    """Build a model's index anew, with the memory that it needs, and measure how many neighbours it finds."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = store.get_model(connection, model)
        limit = memory or _limit(terminal, connection)
        how = index.Build(limit, concurrently, workers, recall)
        if method == "auto":
            built = _build_first(terminal, connection, stored, how, _methods(connection, stored, limit))
        else:
            built = _build(terminal, connection, stored, how, method)
    if built is None:
        terminal.show_one({"model": stored.name, "index": None})
        terminal.talk(f"none is wished for: pgimgsearch index build {stored.name} --method auto")
        return
    terminal.show_one({"model": stored.name, "index": index_name(stored, built.method), "method": built.method,
                       "memory_mb": built.memory, "ef_search": built.ef_search, "recall": built.recall})  # fmt: skip
    if built.recall is not None and built.recall < recall:
        terminal.talk(f"it finds less than {recall}: pgimgsearch index tune {stored.name} --recall {recall}")


def _limit(terminal: Terminal, connection: Connection) -> int:
    return sizing.memory_limit(connection, remote=bool(terminal.settings.db))


def _methods(connection: Connection, model: StoredModel, limit: int) -> list[str]:
    """What to try in turn, where nobody says."""
    beside = aside.find(connection, model)
    rows = sum(store.count_embeddings(connection, one) for one in (model, beside) if one)
    first = sizing.suitable(model, rows // (beside or model).partitions, limit)
    return [first, *(sizing.instead_of_bits(model, diskann=has_diskann(connection)) if first == "hnsw-binary" else [])]


def _build_first(
    terminal: Terminal, connection: Connection, model: StoredModel, how: index.Build, methods: list[str]
) -> index.Built | None:
    """By the first method that finds enough."""
    for method, other in pairwise(methods):
        try:
            return _build(terminal, connection, model, how, method)
        except RecallError as error:
            terminal.talk(f"{error}; trying method {other} instead")
    return _build(terminal, connection, model, how, methods[-1])


def _build(
    terminal: Terminal, connection: Connection, model: StoredModel, how: index.Build, method: str | None
) -> index.Built | None:
    try:
        with terminal.progress(f"index {model.name}", None) as bar:
            if aside.find(connection, model) is not None:  # with what was loaded beside the table
                return aside.finish(connection, model, how, lambda _, done, total: bar(done, total), method)
            return index.build(connection, model, how, lambda _, done, total: bar(done, total), method)
    except KeyboardInterrupt as error:
        raise InterruptedRun(
            f"the build of the index of {model.name} was stopped",
            hint="what there is now, and what to do: pgimgsearch index status",
        ) from error


@app.command()
def drop(context: typer.Context, model: Name) -> None:
    """Drop a model's index; its searches are exact from then on."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = store.get_model(connection, model)
        index.drop(connection, stored)
    terminal.talk(f"{stored.name} has no index now, and its searches read all vectors")


@app.command()
def partition(
    context: typer.Context,
    model: Name,
    parts: Annotated[int, typer.Argument(help="How many; 1 is one piece. Each some 10 million rows.", min=1, max=64)],
) -> None:
    """Lay a model's table out in hash partitions, whose indexes are built one by one; a filled one beside itself."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = store.get_model(connection, model)
        if stored.partitions != parts and store.count_embeddings(connection, stored):
            aside.begin(connection, stored, parts)
            _build(terminal, connection, stored, index.as_before(stored, _limit(terminal, connection)), None)
        else:
            with index.alone(connection, stored):
                connection.execute("select imgsearch.partition_embeddings(%s, %s)", [stored.name, parts])
    terminal.show_one({"model": stored.name, "partitions": parts})


@app.command()
def tune(
    context: typer.Context,
    model: Name,
    recall: RecallOption = measuring.RECALL,
    count: CountOption = 10,
    sample: Annotated[int, typer.Option(min=1, max=10000, help="How many stored vectors to ask with.")] = 200,
) -> None:
    """Find the least ef_search that reaches a recall, and store it with the model."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = store.get_model(connection, model)
        rows = measuring.tune(connection, stored, recall, count, sample)
        chosen = store.get_model(connection, stored.name).ef_search
    terminal.show([row | {"chosen": row["ef_search"] == chosen} for row in rows],
                  ["ef_search", "recall", "milliseconds", "chosen"])  # fmt: skip


@app.command()
def status(context: typer.Context) -> None:
    """Show each model's index, whether it is valid, sizes, the recall measured last, and what to do about it."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        rows = index_status.status(connection)
    terminal.show(rows, ["model", "method", "valid", "rows", "table_bytes", "index_bytes", "partitions", "ef_search",
                         "recall", "advice"])  # fmt: skip
