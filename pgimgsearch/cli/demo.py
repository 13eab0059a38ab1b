"""``demo``: the main job on drawn images, or on one's own, offline."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgimgsearch.cli.terminal import Terminal, terminal_of
from pgimgsearch.database.texts import cache_texts
from pgimgsearch.errors import InterruptedRun

if TYPE_CHECKING:
    from pgimgsearch.demo.tour import Answer

MODELS = ("palette", "pdq")
PICTURES = 240
TEXTS = ("red", "navy", "yellow")
NEXT = (
    "next, with your own photos and a strong model:",
    "  pgimgsearch ingest ./photos --model dinov3",
    "  pgimgsearch search ./photos/one.jpg",
    "  pgimgsearch serve      # then connect any program to what it prints",
)


def demo(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(help="Your own photos. Without it, images are drawn.", metavar="DIR")
    ] = None,
    sheet: Annotated[Path, typer.Option(help="Where to write the contact sheet.")] = Path("contact-sheet.html"),
) -> None:
    """Run the main job on drawn images or your own: ingest, search, duplicates. Offline, in its own database."""
    from pgimgsearch.embeddings.registry import open_model
    from pgimgsearch.sources.folder import folder_source

    terminal = terminal_of(context)
    from pgimgsearch.database.connection import connect
    from pgimgsearch.database.url import database_url
    from pgimgsearch.demo import contact_sheet, pictures, tour
    from pgimgsearch.demo.embedder import embedder
    from pgimgsearch.indexing.after_load import after_load
    from pgimgsearch.ingest import run

    sheet.touch()  # fails now rather than at the end
    home = terminal.settings.home / "demo"
    shutil.rmtree(home / "pictures", ignore_errors=True)
    if folder is None:
        drawn, copies = pictures.make(home / "pictures", PICTURES)
        terminal.notify(f"drew {drawn} images, {copies} of them near-copies of others")
    source = folder_source(folder or home / "pictures")
    total = source.count()
    with database_url(replace(terminal.settings, db=None, home=home)) as url:
        with connect(url) as connection:
            connection.execute("truncate imgsearch.image, imgsearch.content, imgsearch.collection cascade")
            models = [open_model(connection, name) for name in MODELS]
            cache_texts(connection, models[0].stored, TEXTS, models[0].encoder.embed_text(TEXTS))
        with terminal.report("ingest", total) as reporter:
            report = run.ingest(url, source, models, run.Options(), reporter=reporter)
        after_load(url, [model.stored.name for model in models], remote=False)
        if report.status == "interrupted":
            raise InterruptedRun(hint="run the demo again")
        counts = report.counts["palette"]
        terminal.notify(f"ingested {counts['embedded']} images with {' and '.join(MODELS)} in {report.seconds:.1f} s")
        with connect(url) as connection, embedder(connection, models):
            answers = tour.ask(connection, TEXTS) + tour.ask_new(connection, pictures.new(home / "new.png"))
            sections = tour.sections(connection, answers)
    _print(terminal, answers)
    contact_sheet.write(sheet, "pgimgsearch: images and SQL", sections)
    terminal.notify("")
    terminal.notify(f"contact sheet: {sheet.resolve()} (open it in a browser)")
    for line in NEXT:
        terminal.notify(line)


def _print(terminal: Terminal, answers: "list[Answer]") -> None:
    """The SQL and its answers, as an application would see them."""
    if terminal.settings.json:
        terminal.show_one({answer.sql: answer.rows for answer in answers})
        return
    for answer in answers:
        terminal.write(f"\n-- {answer.title}\n{answer.sql};\n")
        if answer.rows:
            terminal.show(answer.rows[:12], list(answer.rows[0]))
        else:
            terminal.write("none")
        if len(answer.rows) > 12:
            terminal.write(f"... and {len(answer.rows) - 12} more rows")
