"""The terminal: results on stdout as tables or JSON, messages on stderr, errors in one form, and shared options.

Names, captions and all else that comes from outside are text: what a terminal would obey is shown as an escape.
"""

import io
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup
from typer.exceptions import TyperException

from pgimgsearch.errors import PgImgSearchError, UsageError
from pgimgsearch.reporter import Reporter
from pgimgsearch.settings import Settings

# Control characters, half characters, ends of lines and what turns the direction of writing
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
LOADING = "How the model is loaded"
WIDTH = 200  # characters of a table that no terminal shows
SPEED = "Device and speed"

ModelOption = Annotated[str, typer.Option("--model", "-m", help="A model's name or an alias.")]
DeviceOption = Annotated[
    str, typer.Option(rich_help_panel=SPEED, help="auto, cpu, mps, cuda (every GPU), cuda:1 or cuda:0,3.")
]
ShadowTableOption = Annotated[
    bool | None,
    typer.Option(
        "--shadow-table/--no-shadow-table", rich_help_panel=SPEED,
        help="Load into a new table, index that, then swap it in. Default: for a large load into an indexed table.",
    ),
]  # fmt: skip
DtypeOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8"],
    typer.Option(rich_help_panel=SPEED, help="auto: half precision on a GPU, else fp32."),
]
TorchDtypeOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(rich_help_panel=SPEED, help="auto: half precision on a GPU, else fp32."),
]
RuntimeOption = Annotated[
    Literal["auto", "torch", "onnx"],
    typer.Option(rich_help_panel=SPEED, help="auto: onnx on CPUs, if the export of the model agrees with torch."),
]
RevisionOption = Annotated[
    str | None, typer.Option(rich_help_panel=LOADING, help="A commit or tag of the model's repository.")
]
PreprocessOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=LOADING, help="Preprocessing, if the checkpoint has none: imagenet, clip or siglip."),
]
TrustOption = Annotated[
    bool, typer.Option("--trust", rich_help_panel=LOADING, help="Allow TorchScript weights, which can run any code.")
]
DimOption = Annotated[int | None, typer.Option(min=1, help="Reduce to this many dimensions: NAME@DIM.")]
ReductionOption = Annotated[Literal["pca", "truncate"] | None, typer.Option(help="How to reduce. Default: pca.")]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(help='Put the text in a sentence: "a photo of a {}". Repeat it to average several.'),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=LOADING, help="A local checkpoint, file or folder, to load instead of a download."),
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file", envvar="PGIMGSEARCH_EMBEDDER_PASSWORD_FILE",
        help="A file with the embedder's password. Default: the one in --home that serve makes.",
    ),
]  # fmt: skip
CollectionOption = Annotated[str | None, typer.Option("--collection", "-c", help="Only this collection.")]
CountOption = Annotated[int, typer.Option("--count", "-k", min=1, help="How many results.")]


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where a command writes; ``ctx.obj`` of every command."""

    settings: Settings

    def notify(self, message: str) -> None:
        """Print a message on stderr, unless quiet."""
        if not self.settings.quiet:
            _stderr().print(printable(message), markup=False, highlight=False, soft_wrap=True, emoji=False)

    def show(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], titles: Sequence[str] | None = None
    ) -> None:
        """Show rows: a table of the columns for people, by their names or titles; all that is in them as JSON."""
        if self.settings.json:
            self.write_json(rows)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column, title in zip(columns, titles or [column.replace("_", " ") for column in columns], strict=True):
            numeric = any(isinstance(row.get(column), int | float) for row in rows)
            table.add_column(Text(printable(title)), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(_cell(row.get(column)))) for column in columns))
        Console(width=None if sys.stdout.isatty() else _columns()).print(table)

    def show_one(self, row: Mapping[str, Any]) -> None:
        """Show one thing: a line a field for people, an object as JSON."""
        if self.settings.json:
            self.write_json(row)
            return
        width = max(len(key) for key in row)
        for key, value in row.items():
            self.write(f"{key.replace('_', ' '):<{width}}  {printable(_cell(value))}")

    def draw(self, locations: Sequence[str], side: int) -> None:
        """Draw small images beside each other on stderr, where the terminal has colours enough."""
        console = _stderr()
        if self.settings.quiet or not console.is_terminal or console.color_system != "truecolor":
            return
        from pgimgsearch.cli.half_blocks import side_by_side
        from pgimgsearch.reports.thumbnail import thumbnail

        console.print(side_by_side([thumbnail(location, side) for location in locations], console.width))

    def write(self, text: str) -> None:
        """Write a result: a text of one or several lines."""
        typer.echo("\n".join(map(printable, text.split("\n"))))

    def write_json(self, value: Any) -> None:
        """Write a value as JSON on one line, in ASCII where the terminal knows no more."""
        utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
        text = json.dumps(value, default=_json_value, ensure_ascii=not utf8)
        typer.echo(OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))

    @contextmanager
    def report(self, what: str, total: int | None = None) -> Iterator[Reporter]:
        """A reporter whose progress is a bar on stderr, with rate and time left."""
        from rich.progress import (  # only commands that take long need it
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TaskProgressColumn(show_speed=True), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=_stderr(), disable=self.settings.quiet, transient=True) as bar:
            task = bar.add_task(printable(what), total=total)

            def progress(done: int, expected: int | None) -> None:
                bar.update(task, completed=done, total=expected if expected is not None else total)

            yield Reporter(self.notify, progress)


class Group(TyperGroup):
    """A group of commands whose errors end as ``error:`` and ``hint:`` with an exit code of their own."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the one place where errors of ours are shown."""
        try:
            return super().invoke(ctx)
        except PgImgSearchError as error:
            raise typer.Exit(show_error(error, debug=_wants_traceback(ctx))) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _stdout_is_closed():  # its reader, such as head, has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(0) from None
            raise typer.Exit(show_error(PgImgSearchError(str(error)), debug=_wants_traceback(ctx))) from error
        except (typer.Exit, typer.Abort, TyperException):
            raise
        except Exception as error:  # what input of a form that nobody thought of leads to
            said = PgImgSearchError(
                f"{type(error).__name__}: {error}",
                hint="that was not foreseen; to see where it happened, run the same command with --debug",
            )
            raise typer.Exit(show_error(said, debug=_wants_traceback(ctx))) from error


def _stdout_is_closed() -> bool:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def show_error(error: PgImgSearchError, *, debug: bool = False) -> int:
    """Show an error of ours and its hint on stderr, with a traceback if wanted. Returns its exit code."""
    if debug:
        traceback.print_exception(error)
    stderr = _stderr()
    plain = {"markup": False, "highlight": False, "soft_wrap": True, "emoji": False}
    stderr.print(printable(f"error: {error}"), style="bold red", **plain)  # type: ignore[arg-type]
    if error.hint:
        stderr.print(printable(f"hint: {error.hint}"), **plain)  # type: ignore[arg-type]
    return error.exit_code


def _wants_traceback(context: Any) -> bool:
    found = context.find_root().obj
    return isinstance(found, Terminal) and found.settings.debug


def printable(text: str) -> str:
    """A text on one line, in which nothing is obeyed by a terminal."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def show_unencodable() -> None:
    """Show characters that the terminal's encoding lacks as escapes, where Python would end with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def join_templates(templates: Sequence[str] | None) -> str | None:
    """Several templates as one text, a line each, as it is stored; raises UsageError for one without {}."""
    for template in templates or ():
        if "{}" not in template:
            raise UsageError(f'the template "{template}" has no {{}} for the text', hint='write "a photo of a {}"')
    return "\n".join(templates) if templates else None


def parse_filter(text: str | None) -> dict[str, Any] | None:
    """The object of --filter; raises UsageError for anything but a JSON object."""
    if text is None:
        return None
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise UsageError(
            f"--filter is not valid JSON: {error}", hint="""for example: --filter '{"colour": "red"}'"""
        ) from error
    return found


def terminal_of(context: typer.Context) -> Terminal:
    """The terminal of a command."""
    found = context.find_root().obj
    assert isinstance(found, Terminal), "the root callback made it"
    return found


def silence_libraries() -> None:
    """Silence what libraries log and warn of; what matters of it is raised as an error of ours."""
    warnings.filterwarnings("ignore", module=r"PIL\b")  # oddities that it then reads, or fails on
    logging.getLogger().addHandler(logging.NullHandler())
    for name in ("huggingface_hub", "transformers", "timm", "open_clip"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _columns() -> int:
    """How wide tables are that no terminal shows."""
    said = os.environ.get("COLUMNS", "")
    return int(said) if said.isdecimal() and int(said[:6]) > 0 else WIDTH


def _stderr() -> Console:
    return Console(stderr=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict | list):
        return json.dumps(value, default=_json_value, ensure_ascii=False) if value else ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
