"""``models switch``, ``fill`` and ``rollback``: another model behind an alias, on a database that serves."""

from typing import Annotated

import typer

from pgimgsearch.cli.terminal import (
    DeviceOption,
    DtypeOption,
    PreprocessOption,
    RevisionOption,
    TrustOption,
    WeightsOption,
    terminal_of,
)
from pgimgsearch.database import index, store
from pgimgsearch.database.address import database_url
from pgimgsearch.database.connection import connect

MaxLoadOption = Annotated[
    float, typer.Option(min=0.01, max=1, help="The share of the time in which the network may work.")
]


def switch(
    context: typer.Context,
    alias: Annotated[str, typer.Argument(help="default, text, duplicates, or one of your own.")],
    to: Annotated[str, typer.Option(help="The model that takes over; it is added where it is new.")],
    allow_missing: Annotated[int, typer.Option(min=0, help="Contents that may be left without a vector.")] = 0,
    recall: Annotated[
        float, typer.Option(min=0, max=1, help="The share of true neighbours its index must find.")
    ] = 0.95,
    sample: Annotated[int, typer.Option(min=1, max=10000, help="Images to measure recall and overlap with.")] = 100,
    max_load: MaxLoadOption = 1.0,
    weights: WeightsOption = None,
    revision: RevisionOption = None,
    preprocess: PreprocessOption = None,
    trust: TrustOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Embed all stored images with another model, index and verify it, and only then let the alias mean it."""
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.operations import switch as switching

    terminal = terminal_of(context)
    limit = index.memory_limit(remote=bool(terminal.settings.db))
    wish = switching.Wish(
        alias, to, allow_missing, recall, sample, max_load, limit, Checkpoint(weights, revision, preprocess, trust),
        Placement(device, dtype),
    )  # fmt: skip
    with database_url(terminal.settings) as url, terminal.progress(f"switch {alias}", None) as bar:
        done = switching.switch(url, wish, terminal.talk, bar)
    terminal.show_one({
        "alias": done.alias, "was": done.old, "is": done.new, "contents": done.coverage.contents,
        "embedded": done.coverage.embedded, "skipped": done.coverage.skipped, "missing": done.coverage.missing,
        "recall": done.recall, "overlap": done.overlap, "locked_ms": done.milliseconds,
    })  # fmt: skip
    if done.old is not None:
        terminal.talk(f"back: pgimgsearch models rollback {alias}; once it is not needed: models remove {done.old}")


def fill(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A stored model's name or an alias.")],
    max_load: MaxLoadOption = 1.0,
    trust: TrustOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Embed all stored images that a model has no vector of, from the files that they came from."""
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.operations import fill as filling
    from pgimgsearch.pipeline import register, run

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, terminal.progress(f"fill {name}", None) as bar:
        with connect(url) as connection:
            stored = store.get_model(connection, name)
            model = register.open_model(connection, stored.name, Checkpoint(trust=trust), Placement(device, dtype))
        covered = filling.fill(url, model, run.Options(max_load=max_load), bar)
    terminal.show_one({"model": stored.name, "contents": covered.contents, "embedded": covered.embedded,
                       "skipped": covered.skipped, "missing": covered.missing})  # fmt: skip
    if covered.missing:
        terminal.talk("why some are missing: select * from imgsearch.ingest_failure")


def rollback(
    context: typer.Context,
    alias: Annotated[str, typer.Argument(help="default, text, duplicates, or one of your own.")],
) -> None:
    """Let an alias mean the model that it meant before, at once; and once more to go forth again."""
    from pgimgsearch.operations import fill
    from pgimgsearch.operations import switch as switching

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        name = switching.rollback(connection, alias)
        missing = fill.coverage(connection, store.get_model(connection, name)).missing
    terminal.show_one({"alias": alias, "is": name, "missing": missing})
    if missing:
        terminal.talk(f"{missing} contents came without {name}: pgimgsearch models fill {name}")
