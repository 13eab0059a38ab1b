"""``stats`` and ``doctor``: what is stored, and whether it is sound."""

from typing import Annotated

import typer
from psycopg.rows import dict_row

from pgimgsearch.cli.terminal import TrustOption, terminal_of
from pgimgsearch.database.connection import connect
from pgimgsearch.database.models import coverage_table
from pgimgsearch.database.runs import recent_runs
from pgimgsearch.database.url import database_url

RUNS_SHOWN = 5


def stats(
    context: typer.Context,
    exact: Annotated[bool, typer.Option("--exact", help="Count large tables instead of estimating.")] = False,
) -> None:
    """Show the coverage of each model, the collections, and the last runs."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        models = coverage_table(connection, exact=exact)
        cursor = connection.cursor(row_factory=dict_row)
        collections = cursor.execute(
            "select c.name, c.root, count(i.image_id) as images from imgsearch.collection c "
            "left join imgsearch.image i using (collection_id) group by c.collection_id order by c.name"
        ).fetchall()
        runs = recent_runs(connection, RUNS_SHOWN)
    if terminal.settings.json:
        terminal.show_one({"models": models, "collections": collections, "runs": runs})
        return
    terminal.show(models, ["model", "status", "images", "contents", "embedded", "skipped", "failed", "missing"])
    terminal.write("")
    terminal.show(collections, ["name", "root", "images"])
    terminal.write("")
    terminal.show(runs, ["run_id", "source", "models", "status", "started_at", "ended_at"])


def doctor(
    context: typer.Context,
    canary: Annotated[
        bool,
        typer.Option(
            "--canary/--no-canary",
            help="Load each model and compare its test vectors.",
        ),
    ] = True,
    trust: TrustOption = False,
) -> None:
    """Check the server, schema, models and indexes. Each finding names the command that fixes it."""
    from pgimgsearch.operations.doctor import canary_findings, server_findings

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url, check=False) as connection:
        findings = server_findings(connection)
        if canary and not any(finding.check == "schema" and finding.state == "bad" for finding in findings):
            from pgimgsearch.models.spec import Checkpoint

            findings += canary_findings(connection, Checkpoint(trust=trust))
    terminal.show([{"check": f.check, "state": f.state, "finding": f.finding, "mend": f.mend} for f in findings],
                  ["check", "state", "finding", "mend"])  # fmt: skip
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)
