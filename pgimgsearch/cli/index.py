"""``index``: indexes by hand; ingest builds missing ones by itself."""

from itertools import pairwise
from typing import Annotated, Literal

import typer

from pgimgsearch.cli.stored import stored_model
from pgimgsearch.cli.terminal import CountOption, Group, Terminal, terminal_of
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel, count_embeddings, get_model
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import InterruptedRun, RecallError
from pgimgsearch.indexing import recall as measuring
from pgimgsearch.indexing.build import (
    BuildOptions,
    BuildResult,
    build_index,
    drop_index,
    lock_index,
    with_previous_recall,
)
from pgimgsearch.indexing.embedding_table import count_rows, live_table, shadow_table
from pgimgsearch.indexing.methods import MAX_DIMENSIONS, index_spec, memory_limit, suitable_method
from pgimgsearch.indexing.recall import DEFAULT_RECALL
from pgimgsearch.indexing.shadow_table import complete_load, create_shadow
from pgimgsearch.indexing.status import index_status

app = typer.Typer(cls=Group, no_args_is_help=True, help="Build, tune, partition, drop and inspect indexes.")
Name = Annotated[str, typer.Argument(help="A model's name or an alias.")]
Method = Literal["auto", "hnsw", "hnsw-binary"]
RecallOption = Annotated[float, typer.Option("--recall", min=0, max=1, help="The recall to reach.")]


@app.command()
def build(
    context: typer.Context,
    model: Name,
    method: Annotated[
        Method | None,
        typer.Option(help="auto: hnsw if it fits in memory, else hnsw-binary. Default: keep the current method."),
    ] = None,
    recall: RecallOption = DEFAULT_RECALL,
    memory: Annotated[
        int | None,
        typer.Option(min=64, help="Memory limit of the build in MB. Default: a quarter of the server's memory."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Parallel workers of the server. Default: its setting.")
    ] = None,
    concurrently: Annotated[
        bool, typer.Option("--concurrently", help="Build without blocking writes; slower.")
    ] = False,
) -> None:
    """Rebuild a model's index and measure its recall."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = stored_model(connection, model)
        limit = memory or _limit(terminal, connection)
        how = BuildOptions(limit, concurrently, workers, recall)
        if method == "auto":
            built = _build_first(terminal, connection, stored, how, _methods(connection, stored, limit))
        else:
            built = _build(terminal, connection, stored, how, method)
        name = built and _index_name(connection, stored, built.method)
    if built is None:
        terminal.show_one({"model": stored.name, "index": None})
        terminal.notify(f"no index is configured: pgimgsearch index build {stored.name} --method auto")
        return
    terminal.show_one({"model": stored.name, "index": name, "method": built.method,
                       "memory_mb": built.memory, "ef_search": built.ef_search, "recall": built.recall})  # fmt: skip
    if built.recall is not None and built.recall < recall:
        terminal.notify(f"it finds less than {recall}: pgimgsearch index tune {stored.name} --recall {recall}")


def _index_name(connection: Connection, model: StoredModel, method: str) -> str:
    query = (
        "select imgsearch._index_name(imgsearch._embedding_table(m), %s, '') from imgsearch.model m where model_id = %s"
    )
    row = connection.execute(query, [method, model.model_id]).fetchone()
    assert row is not None
    return str(row[0])


def _limit(terminal: Terminal, connection: Connection) -> int:
    return memory_limit(connection, remote=bool(terminal.settings.db))


def _methods(connection: Connection, model: StoredModel, limit: int) -> list[str]:
    """The methods to try, in order, for --method auto: bits that find too little give way to the graph."""
    shadow = shadow_table(connection, model)
    tables = [live_table(model)] + ([shadow] if shadow else [])
    rows = sum(count_rows(connection, table) for table in tables)
    first = suitable_method(index_spec(model), rows // tables[-1].partitions, limit)
    fits = model.dim <= MAX_DIMENSIONS[model.storage]
    return [first, "hnsw"] if first == "hnsw-binary" and fits else [first]


def _build_first(
    terminal: Terminal, connection: Connection, model: StoredModel, options: BuildOptions, methods: list[str]
) -> BuildResult | None:
    """By the first method that finds enough."""
    for method, other in pairwise(methods):
        try:
            return _build(terminal, connection, model, options, method)
        except RecallError as error:
            terminal.notify(f"{error}; trying method {other} instead")
    return _build(terminal, connection, model, options, methods[-1])


def _build(
    terminal: Terminal, connection: Connection, model: StoredModel, how: BuildOptions, method: str | None
) -> BuildResult | None:
    try:
        with terminal.report(f"index {model.name}", None) as reporter:
            if shadow_table(connection, model) is not None:  # with what was loaded beside the table
                return complete_load(connection, model, how, reporter, method)
            return build_index(connection, model, how, reporter, method)
    except KeyboardInterrupt as error:
        raise InterruptedRun(
            f"the build of the index of {model.name} was stopped",
            hint="what there is now, and what to do: pgimgsearch index status",
        ) from error


@app.command()
def drop(context: typer.Context, model: Name) -> None:
    """Drop a model's index; searches are exact from then on."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = stored_model(connection, model)
        drop_index(connection, stored)
    terminal.notify(f"{stored.name} has no index now, and its searches read all vectors")


@app.command()
def partition(
    context: typer.Context,
    model: Name,
    parts: Annotated[
        int, typer.Argument(help="The number of partitions, about 10 million rows each; 1 for none.", min=1, max=64)
    ],
) -> None:
    """Partition a model's table by hash, through a shadow table if it has rows."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = stored_model(connection, model)
        if stored.partitions != parts and count_embeddings(connection, stored):
            create_shadow(connection, stored, parts)
            _build(terminal, connection, stored, with_previous_recall(stored, _limit(terminal, connection)), None)
        else:
            with lock_index(connection, stored):
                connection.execute("select imgsearch.partition_embeddings(%s, %s)", [stored.name, parts])
    terminal.show_one({"model": stored.name, "partitions": parts})


@app.command()
def tune(
    context: typer.Context,
    model: Name,
    recall: RecallOption = DEFAULT_RECALL,
    count: CountOption = 10,
    sample: Annotated[int, typer.Option(min=1, max=10000, help="The number of stored vectors to query with.")] = 200,
) -> None:
    """Find and store the lowest ef_search that reaches a recall."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = stored_model(connection, model)
        rows = measuring.tune(connection, stored, recall, count, sample)
        chosen = get_model(connection, stored.name).ef_search
    terminal.show([row | {"chosen": row["ef_search"] == chosen} for row in rows],
                  ["ef_search", "recall", "milliseconds", "chosen"])  # fmt: skip


@app.command()
def status(context: typer.Context) -> None:
    """Show each model's index: method, validity, sizes, last measured recall, and advice."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        rows = index_status(connection)
    terminal.show(rows, ["model", "method", "valid", "rows", "table_bytes", "index_bytes", "partitions", "ef_search",
                         "recall", "advice"])  # fmt: skip
