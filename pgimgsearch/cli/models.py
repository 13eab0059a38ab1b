"""``models``: what there is, what is stored, adding and removing."""

from dataclasses import asdict, fields, replace
from typing import Annotated

import typer

from pgimgsearch.cli.terminal import DeviceOption, Group, WeightsOption, terminal_of
from pgimgsearch.database import store
from pgimgsearch.database.address import database_url
from pgimgsearch.database.connection import connect
from pgimgsearch.errors import UsageError
from pgimgsearch.models import catalog

app = typer.Typer(cls=Group, no_args_is_help=True, help="Models: list, show, add, remove, and point aliases at them.")


@app.command("list")
def list_models(
    context: typer.Context,
    catalog_too: Annotated[
        bool,
        typer.Option("--all", envvar="PGIMGSEARCH_MODELS_LIST_ALL", help="Also those that are not in the database."),
    ] = False,
) -> None:
    """List the models of the database with what they cover, or of the catalog too."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = {model.name: model for model in store.models(connection)}
        covered = {row["model"]: row for row in store.coverage(connection, exact=False)}
        names = store.aliases(connection)
    rows: list[dict[str, object]] = [
        {
            "model": model.name, "dim": model.dim, "storage": model.storage, "text": model.has_text,
            "licence": model.licence, "status": model.status, "index": model.index_method,
            "embedded": covered[model.name]["embedded"], "missing": covered[model.name]["missing"],
            "aliases": ", ".join(alias for alias, name in names.items() if name == model.name),
        }
        for model in stored.values()
    ]  # fmt: skip
    columns = [
        "model",
        "dim",
        "storage",
        "text",
        "licence",
        "status",
        "index",
        "embedded",
        "missing",
        "aliases",
    ]
    if catalog_too:
        rows += [
            {"model": spec.name, "dim": spec.dim, "storage": spec.storage, "text": spec.text, "licence": spec.licence,
             "status": "gated" if spec.gated else "available", "good_for": spec.good_for}
            for spec in catalog.CATALOG
            if spec.name not in stored
        ]  # fmt: skip
        columns = ["model", "dim", "text", "licence", "status", "embedded", "good_for"]
    terminal.show(rows, columns)
    if not rows:
        terminal.talk('no model is stored yet; "pgimgsearch models list --all" shows what there is')


@app.command()
def show(context: typer.Context, name: Annotated[str, typer.Argument(help="A stored or a catalog model.")]) -> None:
    """Show all that is known of a model; its table and view for SQL of one's own."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = store.find_model(connection, name)
    if stored is None:
        terminal.show_one(asdict(catalog.resolve(name)))
        return
    shown = {field.name: getattr(stored, field.name) for field in fields(stored)}
    terminal.show_one(shown | {"table": f"imgsearch.{stored.table_name}", "view": stored.view_name})


@app.command()
def add(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="A catalog name, or timm:NAME, open_clip:ARCH/TAG, hf:REPO, PREFIX:/folder.")
    ],
    weights: WeightsOption = None,
    stored_name: Annotated[
        str | None, typer.Option("--as", envvar="PGIMGSEARCH_MODELS_ADD_AS", help="The name to store it under.")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="Scale vectors to length one.")] = True,
    device: DeviceOption = "auto",
) -> None:
    """Load a model and make its table, empty; ingest fills it."""
    terminal = terminal_of(context)
    spec = catalog.resolve(name, weights)
    if not normalize:
        spec = replace(spec, normalize=False)
    with database_url(terminal.settings) as url, connect(url) as connection:
        if store.find_model(connection, stored_name or spec.name):
            raise UsageError(f"{stored_name or spec.name} is already there", hint="choose another name with --as NAME")
        from pgimgsearch.pipeline.register import add_model

        added = add_model(connection, spec, device=device, name=stored_name).stored
    terminal.show_one({"model": added.name, "dim": added.dim, "licence": added.licence,
                       "table": f"imgsearch.{added.table_name}", "view": added.view_name})  # fmt: skip


@app.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A stored model.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model with its table, view, index and cached text."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        model = store.get_model(connection, name)
        if not yes:
            typer.confirm(f"Remove {model.name} with all its vectors?", abort=True, err=True)
        store.remove_model(connection, model.name)
    terminal.talk(f"removed {model.name}")


@app.command()
def alias(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="default, text, duplicates, or one of your own.")],
    model: Annotated[
        str | None, typer.Argument(help="The model it shall mean; without one, the alias is dropped.")
    ] = None,
) -> None:
    """Point an alias at a model: what applications ask for by that name."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        connection.execute("select imgsearch.set_alias(%s, %s)", [name, model])
        terminal.show_one(store.aliases(connection) or {"aliases": None})
