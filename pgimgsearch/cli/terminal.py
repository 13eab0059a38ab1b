"""The terminal: results on stdout as tables or JSON, talk on stderr, and errors in one form."""

import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from pgimgsearch.errors import PgImgSearchError, UsageError
from pgimgsearch.settings import Settings

ModelOption = Annotated[str, typer.Option("--model", "-m", help="A model's name or an alias.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, mps, cuda (every GPU), cuda:1 or cuda:0,3.")]
AsideOption = Annotated[
    bool | None,
    typer.Option("--aside/--no-aside", help="Load beside a live table, index that, and swap. Default: if worth it."),
]
DtypeOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8"], typer.Option(help="auto: half on a GPU, else fp32.")
]
TorchDtypeOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="auto: half on a GPU, else fp32.")
]
RuntimeOption = Annotated[
    Literal["torch", "onnx"], typer.Option(help="onnx exports once and checks itself on your pictures.")
]
RevisionOption = Annotated[str | None, typer.Option(help="A commit or tag of the model's repository.")]
PreprocessOption = Annotated[
    str | None, typer.Option(help="How pictures are prepared, where a checkpoint does not say: imagenet, clip, siglip.")
]
TrustOption = Annotated[bool, typer.Option("--trust", help="Load TorchScript, which runs the code it holds.")]
DimOption = Annotated[int | None, typer.Option(min=1, help="Reduce to so many dimensions: NAME@DIM.")]
ReductionOption = Annotated[
    Literal["pca", "whiten", "truncate"] | None, typer.Option(help="How to reduce. Default: pca.")
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(help='What to put the text into: "a photo of a {}". Several are averaged.'),
]
WeightsOption = Annotated[
    str | None, typer.Option(help="A local checkpoint, file or folder, to load instead of a download.")
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file", envvar="PGIMGSEARCH_EMBEDDER_PASSWORD_FILE",
        help="A file with the embedder's password. Default: one in --home, made by serve.",
    ),
]  # fmt: skip
CollectionOption = Annotated[str | None, typer.Option("--collection", "-c", help="Only this collection.")]
CountOption = Annotated[int, typer.Option("--count", "-k", min=1, help="How many answers.")]


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where a command writes; ``ctx.obj`` of every command."""

    settings: Settings

    def talk(self, message: str) -> None:
        """Say something to a person, unless quiet."""
        if not self.settings.quiet:
            _stderr().print(message, markup=False, highlight=False, soft_wrap=True)

    def show(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], titles: Sequence[str] | None = None
    ) -> None:
        """Show rows: a table of the columns for people, by their names or titles; all that is in them as JSON."""
        if self.settings.json:
            self.write(json.dumps(rows, default=_plain, ensure_ascii=False))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column, title in zip(columns, titles or [column.replace("_", " ") for column in columns], strict=True):
            numeric = any(isinstance(row.get(column), int | float) for row in rows)
            table.add_column(title, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(table)

    def show_one(self, row: Mapping[str, Any]) -> None:
        """Show one thing: a line a field for people, an object as JSON."""
        if self.settings.json:
            self.write(json.dumps(row, default=_plain, ensure_ascii=False))
            return
        width = max(len(key) for key in row)
        for key, value in row.items():
            self.write(f"{key.replace('_', ' '):<{width}}  {_cell(value)}")

    def write(self, text: str) -> None:
        """Write a result as it is."""
        typer.echo(text)

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
        """A bar with rate and time left on stderr; yields a function that takes (done, total)."""
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
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(show_speed=True),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=_stderr(), disable=self.settings.quiet, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done, total: bar.update(task, completed=done, total=total)


class Group(TyperGroup):
    """A group of commands whose errors end as ``error:`` and ``hint:`` with an exit code of their own."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the one place where errors of ours are shown."""
        try:
            return super().invoke(ctx)
        except PgImgSearchError as error:
            raise typer.Exit(show_error(error, debug=_debugs(ctx))) from error
        except OSError as error:
            raise typer.Exit(show_error(PgImgSearchError(str(error)), debug=_debugs(ctx))) from error


def show_error(error: PgImgSearchError, *, debug: bool = False) -> int:
    """Show an error of ours and its hint on stderr, with a traceback if wanted. Returns its exit code."""
    if debug:
        traceback.print_exception(error)
    stderr = _stderr()
    stderr.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if error.hint:
        stderr.print(f"hint: {error.hint}", markup=False, highlight=False, soft_wrap=True)
    return error.exit_code


def _debugs(context: Any) -> bool:
    found = context.find_root().obj
    return isinstance(found, Terminal) and found.settings.debug


def template_of(templates: Sequence[str] | None) -> str | None:
    """Several templates as one text, a line each, as it is stored; raises UsageError for one without a place."""
    for template in templates or ():
        if "{}" not in template:
            raise UsageError(f'the template "{template}" has no place for the text', hint='write "a photo of a {}"')
    return "\n".join(templates) if templates else None


def json_filter(text: str | None) -> dict[str, Any] | None:
    """Metadata to hold, from JSON; raises UsageError for what is no object."""
    if text is None:
        return None
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise UsageError(
            f"--filter is no JSON: {error}", hint="""for example: --filter '{"colour": "red"}'"""
        ) from error
    return found


def terminal_of(context: typer.Context) -> Terminal:
    """The terminal of a command."""
    found = context.find_root().obj
    assert isinstance(found, Terminal), "the root callback made it"
    return found


def hush_libraries() -> None:
    """Libraries log to the root logger while they load; what matters of it is raised as an error of ours."""
    logging.getLogger().addHandler(logging.NullHandler())
    for name in ("huggingface_hub", "transformers", "timm", "open_clip"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _stderr() -> Console:
    return Console(stderr=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict | list):
        return json.dumps(value, default=_plain, ensure_ascii=False) if value else ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
