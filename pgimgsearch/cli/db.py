"""``db``: the database itself."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgimgsearch.cli.terminal import Group, PasswordFileOption, terminal_of
from pgimgsearch.database.connection import connect, current_revision, pgvector_version
from pgimgsearch.database.embedded import Embedded
from pgimgsearch.database.embedded_programs import binaries
from pgimgsearch.database.functions import head_revision
from pgimgsearch.database.models import list_models
from pgimgsearch.database.url import database_url, forget_libpq_settings
from pgimgsearch.errors import DatabaseError, UsageError
from pgimgsearch.settings import shared_password

app = typer.Typer(
    cls=Group, no_args_is_help=True, help="Prepare the database, grant access, and start the embedded server."
)
Revision = Annotated[str, typer.Argument(help="A revision: head, or its number.")]


@app.command()
def upgrade(
    context: typer.Context,
    revision: Revision = "head",
    functions: Annotated[
        bool, typer.Option("--functions", help="Restore our functions even if the revision is current.")
    ] = False,
) -> None:
    """Prepare a database, or upgrade it to the newest revision."""
    from pgimgsearch.database import migrate  # imports Alembic

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url:
        before, after = migrate.upgrade(url, revision, functions=functions)
    terminal.show_one({"before": before, "after": after})


@app.command()
def downgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(help="An older revision, or base.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Go back to an older revision; base drops all our tables."""
    from pgimgsearch.database import migrate

    terminal = terminal_of(context)
    if not yes:
        typer.confirm(f"Downgrade to {revision}? Tables that it does not have are dropped.", abort=True, err=True)
    with database_url(terminal.settings) as url:
        before, after = migrate.downgrade(url, revision)
    terminal.show_one({"before": before, "after": after})
    if not terminal.settings.db:
        terminal.notify("the embedded database is upgraded again by the next command of this release")


@app.command()
def status(context: typer.Context) -> None:
    """Show the database's URL, version and contents."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url, check=False) as connection:
        version, revision = pgvector_version(connection), current_revision(connection)
        shown: dict[str, object] = {
            "database": connection.info.dbname,
            "host": connection.info.host,
            "postgres": f"{connection.info.server_version // 10000}.{connection.info.server_version % 10000}",
            "pgvector": ".".join(map(str, version)) if version else None,
            "revision": revision,
            "newest": head_revision(),
        }
        if revision == head_revision():
            shown["models"] = len(list_models(connection))
    terminal.show_one(shown)


@app.command()
def revision(
    context: typer.Context,
    message: Annotated[str, typer.Option("--message", "-m", help="The message of the revision.")],
    add_model: Annotated[list[str] | None, typer.Option(help="Add a model, by any name that ingest takes.")] = None,
    drop_model: Annotated[list[str] | None, typer.Option(help="Drop a stored model.")] = None,
    switch: Annotated[list[str] | None, typer.Option(help="ALIAS=MODEL: point an alias at a filled model.")] = None,
    set_index: Annotated[list[str] | None, typer.Option(help="MODEL=M,EF_CONSTRUCTION: record another index.")] = None,
    config: Annotated[Path, typer.Option(help="The project's Alembic configuration.")] = Path("alembic.ini"),
) -> None:
    """Write a revision for your project's own Alembic migrations."""
    from pgimgsearch.operations.revision import add_operation, drop_operations, index_operation, switch_operation, write

    terminal = terminal_of(context)
    pairs = [text.partition("=") for text in switch or []]
    if wrong := [text for text, (alias, _, model) in zip(switch or [], pairs, strict=True) if not (alias and model)]:
        raise UsageError(f"{wrong[0]} is no switch", hint="write --switch default=dinov3")
    indexes = [re.fullmatch(r"(.+)=(\d+),(\d+)", text) for text in set_index or []]
    if not all(indexes):
        raise UsageError("--set-index takes two numbers", hint="write --set-index dinov3=24,96")
    if not (add_model or drop_model or pairs or indexes):
        raise UsageError("there is nothing to write", hint="name --add-model, --set-index, --switch or --drop-model")
    with database_url(terminal.settings) as url, connect(url) as connection:
        operations = [
            *[add_operation(connection, name) for name in add_model or []],
            *[index_operation(connection, one[1], int(one[2]), int(one[3])) for one in indexes if one],
            *[switch_operation(connection, alias, model) for alias, _, model in pairs],
            *[
                one
                for name in drop_model or []
                for one in drop_operations(connection, name, {alias for alias, _, _ in pairs})
            ],
        ]
    terminal.write(str(write(config, message, operations)))


@app.command("sql")
def sql_script(context: typer.Context, revision: Revision = "head") -> None:
    """Print the SQL that upgrade would run, for an administrator to review and run."""
    from pgimgsearch.database import migrate

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url, check=False) as connection:
        statements = migrate.script(connection, revision)
    if not statements:
        terminal.notify(f"the database is at {revision} already: there is nothing to run")
        return
    terminal.write(statements)


@app.command()
def grant(
    context: typer.Context,
    access: Annotated[str, typer.Argument(help="reader (searches) or writer (also ingests).")],
    role: Annotated[str, typer.Argument(help="An existing role.")],
) -> None:
    """Grant a role the rights of a reader or a writer, and nothing else."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        connection.execute("select imgsearch.grant_access(%s, %s)", [role, access])
    terminal.notify(f"{role} is a {access} now")


@app.command("connect-embedder")
def connect_embedder(
    context: typer.Context,
    host: Annotated[str, typer.Argument(help="The host of pgimgsearch serve, as the database server reaches it.")],
    port: Annotated[int, typer.Argument(min=1, max=65535)],
    password: PasswordFileOption = None,
    sslmode: Annotated[str, typer.Option(help="As in libpq: prefer, require, verify-full.")] = "prefer",
) -> None:
    """Connect SQL to a running embedder, over dblink. A user mapping holds the password."""
    terminal = terminal_of(context)
    file = password or terminal.settings.embedder_password
    if not file.exists():
        raise UsageError(
            f"there is no password at {file}", hint="serve makes one; copy that file here: --password-file"
        )
    # in a transaction, so that an embedder that does not answer replaces none
    with database_url(terminal.settings) as url, connect(url) as connection, connection.transaction():
        connection.execute(
            "select imgsearch.connect_embedder(%s, %s, %s, %s)", [host, port, shared_password(file), sslmode]
        )
        held = connection.execute("select model from imgsearch.embedder_status() where serves").fetchall()
    terminal.notify(f"connected; it serves {', '.join(row[0] for row in held) or 'none of the models here'}")


@app.command()
def start(
    context: typer.Context,
    port: Annotated[
        int | None, typer.Option(min=1024, max=65535, help="Also listen on 127.0.0.1 at this port.")
    ] = None,
) -> None:
    """Start the embedded Postgres for other programs, keep it running, and print its URL."""
    terminal = terminal_of(context)
    server = _embedded(terminal.settings.db, terminal.settings.home)
    server.keep(port)
    with database_url(terminal.settings) as url:  # prepares it
        terminal.write(url)


@app.command()
def stop(
    context: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Also while it is in use; its users lose their work.")] = False,
) -> None:
    """Stop the embedded Postgres."""
    terminal = terminal_of(context)
    was_running = _embedded(terminal.settings.db, terminal.settings.home).stop(force=force)
    terminal.notify("stopped" if was_running else "it was not running")


@app.command("url")
def show_url(context: typer.Context) -> None:
    """Print the URL for other programs, with its password. The embedded server must run: db start."""
    terminal = terminal_of(context)
    if terminal.settings.db:
        terminal.write(terminal.settings.db)
        return
    server = _embedded(None, terminal.settings.home)
    if not server.is_running():
        raise DatabaseError("the embedded Postgres does not run", hint="run: pgimgsearch db start --port 5544")
    terminal.write(server.url())


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def psql(
    context: typer.Context,
    command: Annotated[list[str] | None, typer.Option("--command", "-c", help="Run this command and exit.")] = None,
) -> None:
    """Open psql on the database; arguments after -- are passed on."""
    import subprocess

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url:
        # its password goes by the environment: arguments are in the process list
        address = conninfo_to_dict(url)
        secret = {"PGPASSWORD": str(address.pop("password"))} if "password" in address else {}
        commands = [word for text in command or [] for word in ("-c", text)]
        arguments = [make_conninfo(**address), *commands, *context.args]  # type: ignore[arg-type]
        done = subprocess.run([str(binaries() / "psql"), *arguments], env=os.environ | secret, check=False)
    raise typer.Exit(done.returncode)


def _embedded(db: str | None, home: "os.PathLike[str]") -> Embedded:
    if db:
        raise UsageError("this command is for the embedded Postgres", hint="leave --db and PGIMGSEARCH_DB out")
    forget_libpq_settings()
    return Embedded(Path(home))
