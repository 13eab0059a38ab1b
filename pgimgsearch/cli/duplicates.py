"""``duplicates``: found, shown, judged and put away."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from psycopg.rows import dict_row

from pgimgsearch.cli import verdicts
from pgimgsearch.cli.compare_new import How, calibrate_here, find_all, thresholds_told, turns_of
from pgimgsearch.cli.stored import stored_model
from pgimgsearch.cli.terminal import CollectionOption, DeviceOption, Terminal, terminal_of
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.thresholds import with_thresholds
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import UsageError

app = typer.Typer(
    invoke_without_command=True, help="Find duplicates, record verdicts, and move copies to a trash folder."
)

PAIR_COLUMNS = ["image_a", "image_b", "similarity", "kind", "transform", "path_a", "path_b"]
GROUP_COLUMNS = ["group_id", "image_id", "keeper", "similarity", "kind", "path", "width", "height", "bytes", "reason",
                 "minimum", "median"]  # fmt: skip
OF_COLUMNS = ["image_id", "similarity", "kind", "collection", "path", "width", "height", "bytes"]
PLAN_COLUMNS = ["kind", "bytes", "location", "keeper"]

for command in (verdicts.accept, verdicts.reject, verdicts.forget, verdicts.review):
    app.command()(command)


@app.callback()
def duplicates(
    context: typer.Context,
    threshold: Annotated[
        float | None, typer.Option(help="The lowest similarity. Default: the model's threshold.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model's name or an alias; with several, see --agree."),
    ] = None,
    agree: Annotated[
        Literal["all", "any"], typer.Option(help="all: every model must find a pair; any: one is enough.")
    ] = "all",
    collection: CollectionOption = None,
    kind: Annotated[list[str] | None, typer.Option(help="identical, near or similar; repeatable.")] = None,
    of: Annotated[int | None, typer.Option(help="Only the copies of this image_id.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Pairs instead of groups.")] = False,
    linkage: Annotated[
        Literal["medoid", "components"],
        typer.Option(help="medoid: all members are similar to one; components: all that is connected."),
    ] = "medoid",
    keep: Annotated[
        str | None,
        typer.Option(
            help="The rules that choose the keeper. Default: original,unconverted,metadata,detail,pixels,lossless,"
            "bytes,oldest,path."
        ),
    ] = None,
    prefer: Annotated[
        list[str] | None, typer.Option(help="LIKE patterns of paths to keep, best first: 'originals/%'.")
    ] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="A collection whose images are all kept; repeatable.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-k", min=1, help="Groups or pairs on a page.")] = None,
    after: Annotated[str | None, typer.Option(help="The last group, or pair A,B, of the page before.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML gallery.")] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Write a plan of the identical files to move, or of --kind; moves nothing.")
    ] = None,
    allow_metadata_loss: Annotated[
        bool, typer.Option("--allow-metadata-loss", help="Plan copies whose date, place or camera the keeper has not.")
    ] = False,
    apply: Annotated[Path | None, typer.Option(help="Move the files of a plan into --trash.")] = None,
    trash: Annotated[Path | None, typer.Option(help="The folder for --apply.")] = None,
    transformed: Annotated[
        str | None, typer.Option(help="Find copies that are mirrored, rotated or both: mirror,rotate. Reads the files.")
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Delete the stored pairs first.")] = False,
    find: Annotated[
        bool,
        typer.Option(
            "--find/--no-find",
            help="Compare new images first, and store the pairs.",
        ),
    ] = True,
    method: Annotated[
        Literal["auto", "index", "exact"], typer.Option(help="How to compare. Default: whichever is faster here.")
    ] = "auto",
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Connections that search the index.")] = 2,
) -> None:
    """Find identical and nearly identical images, in groups with a suggested keeper. No file moves without --apply."""
    if context.invoked_subcommand is not None:
        return
    terminal = terminal_of(context)
    given = {"apply": apply, "of": of, "pairs": pairs, "plan": plan, "html": html, "trash": trash}
    _check_together({name for name, value in given.items() if value not in {None, False}})
    if apply is not None and trash is not None:
        _apply(terminal, apply, trash)
        return
    from pgimgsearch.duplicates.groups import GroupRequest

    if plan is not None and kind is None:
        kind = ["identical"]
        terminal.notify("a plan takes identical images alone; others with --kind near, which look alike to a model")
    names = model or ["duplicates"]
    transforms = turns_of(transformed, names, agree)
    with database_url(terminal.settings) as url, connect(url) as connection:
        models = [stored_model(connection, name) for name in names]
        first, *also = [model.name for model in models]
        question = GroupRequest(
            model=first, threshold=threshold, collection=collection, kinds=kind, also=also, agree=agree,
            transformed=bool(transforms), linkage=linkage, keep=_rules(keep), prefer=prefer, reference=reference,
            k=count, after=None if pairs else _number(after),
        )  # fmt: skip
        if find and of is None and kind != ["identical"]:
            calibrate_here(terminal, connection, models[1:] if threshold is not None else models, collection, device)
        judged = [with_thresholds(connection, model, collection) for model in models]
        told = thresholds_told(connection, judged, collection, threshold, kind)
        for line in told:
            terminal.notify(line)
        if of is not None:
            terminal.show(_copies_of(connection, of, question), OF_COLUMNS)
            return
        if find and kind != ["identical"]:
            find_all(terminal, url, models if agree == "any" else models[:1], threshold, kind, transforms,
                     How(method, device, workers, anew), collection)  # fmt: skip
        if pairs:
            _show_pairs(terminal, connection, question, after)
        else:
            _show_groups(terminal, connection, question, html, plan, "; ".join(told),
                         allow_metadata_loss=allow_metadata_loss)  # fmt: skip


@app.command()
def undo(context: typer.Context, trash: Annotated[Path, typer.Argument(help="The folder passed to --trash.")]) -> None:
    """Restore what --apply moved."""
    from pgimgsearch.duplicates import trash as away

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        outcomes = list(away.undo(connection, trash))
    terminal.show([{"outcome": o.outcome, "location": o.location, "from": o.to} for o in outcomes],
                  ["outcome", "location"])  # fmt: skip
    restored = sum(outcome.outcome == "restored" for outcome in outcomes)
    terminal.notify(
        f"{restored} brought back; their vectors come with the next pgimgsearch ingest, for each model"
        if outcomes
        else "nothing to bring back"
    )
    if restored < len(outcomes):
        raise typer.Exit(1)


def _copies_of(connection: Connection, image_id: int, question: Any) -> list[dict[str, Any]]:
    return (
        connection.cursor(row_factory=dict_row)
        .execute(
            "select * from imgsearch.duplicates_of(%s, threshold => %s, model => %s, collection => %s)",
            [image_id, question.threshold, question.model, question.collection],
        )
        .fetchall()
    )


def _show_pairs(terminal: Terminal, connection: Connection, question: Any, after: str | None) -> None:
    from pgimgsearch.duplicates.groups import pairs

    last = None if after is None else [_number(part) or 0 for part in after.split(",")]
    if last is not None and len(last) != 2:
        raise UsageError(f"--after {after} is no pair", hint="give both image ids: --after 12,40")
    terminal.show(pairs(connection, question, last), PAIR_COLUMNS)


def _show_groups(
    terminal: Terminal, connection: Connection, question: Any, html: Path | None, plan: Path | None, told: str,
    *, allow_metadata_loss: bool,
) -> None:  # fmt: skip
    from dataclasses import asdict

    from pgimgsearch.duplicates import report
    from pgimgsearch.duplicates.groups import groups
    from pgimgsearch.duplicates.hold_back import hold_back
    from pgimgsearch.duplicates.plan import plan as plan_moves
    from pgimgsearch.duplicates.plan import write_plan

    found = groups(connection, question)
    if html is not None:
        pages = report.write(html, found, f"Found by {told}. Nothing was changed.")
        terminal.notify(f"written: {', '.join(map(str, pages[:3]))}{' ...' if len(pages) > 3 else ''}")
    if plan is not None:
        if plan.exists():
            raise UsageError(f"{plan} exists", hint="apply or remove it first, or choose another name")
        moves, left_out = hold_back(connection, plan_moves(found), allow_metadata_loss=allow_metadata_loss)
        for line in left_out:
            terminal.notify(line)
        write_plan(plan, moves)
        terminal.show([asdict(move) for move in moves], PLAN_COLUMNS)
        terminal.notify(
            f"{len(moves)} files, {sum(move.bytes for move in moves) / 1e6:.3g} MB, would move; nothing has. "
            f"Read {plan}, delete lines as you like, then: pgimgsearch duplicates --apply {plan} --trash FOLDER"
        )
    else:
        most = None if terminal.settings.json else report.MEMBERS_SHOWN
        terminal.show([asdict(member) for group in found for member in group[:most]], GROUP_COLUMNS)
        if more := sum(len(group[most:]) for group in found if most is not None):
            terminal.notify(f"and {more} more, of groups of more than {most} images: --json has them all")


def _apply(terminal: Terminal, plan: Path, trash: Path) -> None:
    from pgimgsearch.duplicates import trash as away
    from pgimgsearch.duplicates.plan import read_plan

    outcomes = []
    with database_url(terminal.settings) as url, connect(url) as connection:
        moves = read_plan(plan)
        try:
            for outcome in away.apply(connection, moves, trash):
                outcomes.append(outcome)
        finally:
            moved = sum(outcome.outcome == "moved" for outcome in outcomes)
            terminal.notify(f"{moved} of {len(moves)} moved; to bring them back: pgimgsearch duplicates undo {trash}")
    terminal.show([{"outcome": o.outcome, "location": o.location, "to": o.to} for o in outcomes],
                  ["outcome", "location"])  # fmt: skip
    if moved < len(outcomes):
        raise typer.Exit(1)


def _check_together(given: set[str]) -> None:
    """Refuse options of which one would be ignored."""
    if "apply" in given and "trash" not in given:
        raise UsageError("--apply needs --trash", hint="for example: --apply plan.jsonl --trash ./trash")
    if "trash" in given and "apply" not in given:
        raise UsageError("--trash is for --apply", hint="first write a plan: pgimgsearch duplicates --plan plan.jsonl")
    ways = [f"--{name}" for name in ("apply", "of", "pairs", "plan", "html") if name in given]
    if len(ways) > 1 and set(ways) != {"--plan", "--html"}:
        raise UsageError(f"{' and '.join(ways)} do not go together", hint="run one after the other")


def _rules(text: str | None) -> list[str] | None:
    return None if text is None else [rule.strip() for rule in text.split(",") if rule.strip()]


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{text} is no id", hint="give the number that the page before ended with") from error
