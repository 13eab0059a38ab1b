"""The command line, assembled."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pgimgsearch import __version__
from pgimgsearch.cli import (
    calibrate,
    cluster,
    demo,
    duplicates,
    evaluate,
    index,
    ingest,
    models,
    plan,
    search,
    serve,
    switch,
)
from pgimgsearch.cli import db as database
from pgimgsearch.cli import export_import as transfer
from pgimgsearch.cli import status as operations
from pgimgsearch.cli.terminal import Group, Terminal, hush_libraries, show_error
from pgimgsearch.errors import PgImgSearchError
from pgimgsearch.settings import Settings, config_path, default_home, read_config

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Image search inside Postgres: embed pictures into pgvector columns, then ask in SQL.",
)
app.command()(demo.demo)
app.command()(ingest.ingest)
app.command()(search.search)
app.command("embed-text")(search.embed_text)
app.command()(operations.stats)
app.command()(operations.doctor)
app.command()(serve.serve)
app.command()(plan.plan)
app.command()(cluster.cluster)
app.command()(transfer.export)
app.command("import")(transfer.bring)
app.command(help=evaluate.HELP)(evaluate.evaluate)
app.add_typer(duplicates.app, name="duplicates")
models.app.command("calibrate")(calibrate.calibrate)
models.app.command("switch")(switch.switch)
models.app.command("fill")(switch.fill)
models.app.command("rollback")(switch.rollback)
models.app.command("compare")(switch.compare)
app.add_typer(models.app, name="models")
app.add_typer(database.app, name="db")
app.add_typer(index.app, name="index")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgimgsearch {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    db: Annotated[
        str | None, typer.Option(help="A Postgres 15+ with pgvector 0.8+; without it, the embedded one.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="The folder of the embedded Postgres.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Results as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No talk, only results.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[  # noqa: ARG001  (its callback does the work)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Image search inside Postgres."""
    hush_libraries()
    context.obj = Terminal(
        Settings(db=db, home=(home or default_home()).absolute(), json=json, quiet=quiet, debug=debug)
    )


def main() -> None:
    """Run the command line; every option has a variable PGIMGSEARCH_[COMMAND_]OPTION and a place in the config file."""
    try:
        defaults = read_config(config_path())
    except PgImgSearchError as error:
        sys.exit(show_error(error))
    typer.main.get_command(app).main(auto_envvar_prefix="PGIMGSEARCH", default_map=defaults)
