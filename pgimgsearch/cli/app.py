"""The command line, assembled."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pgimgsearch import __version__
from pgimgsearch.cli import (
    calibrate,
    cluster,
    db,
    demo,
    duplicates,
    evaluate,
    export_import,
    index,
    ingest,
    models,
    plan,
    search,
    serve,
    status,
    switch,
)
from pgimgsearch.cli.terminal import Group, Terminal, show_error, show_unencodable, silence_libraries
from pgimgsearch.errors import InterruptedRun, PgImgSearchError, UsageError
from pgimgsearch.settings import ALLOW_PRIVATE, Settings, config_path, default_home, read_config

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.command(help=ingest.HELP)(ingest.ingest)
app.command()(search.search)
app.command("embed-text")(search.embed_text)
app.command()(status.stats)
app.command()(status.doctor)
app.command()(serve.serve)
app.command()(plan.plan)
app.command()(cluster.cluster)
app.command()(export_import.export)
app.command("import")(export_import.import_)
app.command(help=evaluate.HELP)(evaluate.evaluate)
app.add_typer(duplicates.app, name="duplicates")
models.app.command("calibrate")(calibrate.calibrate)
models.app.command("switch")(switch.switch)
models.app.command("fill")(switch.fill)
models.app.command("rollback")(switch.rollback)
models.app.command("compare")(switch.compare)
app.add_typer(models.app, name="models")
app.add_typer(db.app, name="db")
app.add_typer(index.app, name="index")

GLOBAL_FLAGS = {"--json", "--quiet", "-q", "--debug", "--version", "--allow-private"}
GLOBAL_OPTIONS = {"--db", "--home"}  # each with a value


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgimgsearch {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    database: Annotated[
        str | None, typer.Option("--db", help="Connect to this Postgres, with pgvector. Default: the embedded one.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="The folder of the embedded Postgres and its data.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Fetch images from private addresses of the network too.")
    ] = False,
    version: Annotated[  # noqa: ARG001  (its callback does the work)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Image search inside Postgres: embed images into pgvector columns, then search them in SQL.

    These options may stand before or after the command. Every option can also be set by a variable,
    PGIMGSEARCH_COMMAND_OPTION, for example PGIMGSEARCH_INGEST_MODEL, or in the config file.
    """
    silence_libraries()
    if allow_private:
        os.environ[ALLOW_PRIVATE] = "1"
    context.obj = Terminal(
        Settings(db=database, home=(home or default_home()).absolute(), json=json, quiet=quiet, debug=debug)
    )


def main() -> None:
    """Run the command line; every option has a variable PGIMGSEARCH_[COMMAND_]OPTION and a place in the config file."""
    show_unencodable()
    try:
        defaults = read_config(config_path())
        command = typer.main.get_command(app)
        settle_settings(command, defaults)
    except PgImgSearchError as error:
        sys.exit(show_error(error))
    try:
        command.main(global_options_first(sys.argv[1:]), auto_envvar_prefix="PGIMGSEARCH", default_map=defaults)
    finally:
        _leave(sys.exc_info()[1])


def _leave(ending: BaseException | None) -> None:
    """End a process that was stopped, without waiting for threads that wait for something, such as downloads."""
    if isinstance(ending, SystemExit) and ending.code == InterruptedRun.exit_code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(InterruptedRun.exit_code)


def global_options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with those of the program before the command, where the parser expects them."""
    moved: list[str] = []
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            kept += [argument, *rest]
        elif argument in GLOBAL_FLAGS or argument.partition("=")[0] in GLOBAL_OPTIONS:
            moved.append(argument)
            if argument in GLOBAL_OPTIONS:
                moved += [value for value in [next(rest, None)] if value is not None]
        else:
            kept.append(argument)
    return moved + kept


def settle_settings(command: Any, defaults: dict[str, Any], *path: str) -> None:
    """Name each option's environment variable and key in the config file after its flag, not after its Python name.

    Help does not repeat the variables line by line: the text of the program explains them once.
    """
    for parameter in command.params:
        parameter.show_envvar = False
        flag = max(parameter.opts, key=len).lstrip("-").replace("-", "_")
        if flag != parameter.name:
            parameter.envvar = parameter.envvar or "_".join(["PGIMGSEARCH", *path, flag]).replace("-", "_").upper()
            if flag in defaults and not isinstance(defaults[flag], dict):  # db is an option, and a group of commands
                defaults[parameter.name] = defaults.pop(flag)
        value = defaults.get(parameter.name)
        if getattr(parameter, "multiple", False) and isinstance(value, str):
            defaults[parameter.name] = [value]
    children = getattr(command, "commands", {})
    if unknown := sorted(defaults.keys() - {parameter.name for parameter in command.params} - children.keys()):
        where = f" [{'.'.join(path)}]" if path else ""
        raise UsageError(
            f"{unknown[0]}{where} of the config file is no option",
            hint=f"see those there are: pgimgsearch {' '.join([*path, '--help'])}",
        )
    for name, child in children.items():
        own = defaults.get(name, {})
        if not isinstance(own, dict):
            raise UsageError(f"{name} is a command, not a value of the config file", hint=f"write a section [{name}]")
        settle_settings(child, own, *path, name)
