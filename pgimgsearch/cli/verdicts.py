"""``duplicates accept, reject, forget and review``: what people say of pairs."""

import sys
from typing import Annotated, Literal

import typer

from pgimgsearch.cli.compare_new import How, find_all
from pgimgsearch.cli.stored import stored_model
from pgimgsearch.cli.terminal import CollectionOption, Terminal, terminal_of
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.thresholds import with_thresholds
from pgimgsearch.database.url import database_url
from pgimgsearch.duplicates.groups import GroupRequest
from pgimgsearch.duplicates.verdicts import (
    ShownImage,
    Verdict,
    WaitingPair,
    judge,
    shown_images,
    waiting_pairs,
)
from pgimgsearch.errors import UsageError

THUMBNAIL = 160  # pixels
KEYS = "a: copies, r: different images, s: skip, u: back to the last one, q: quit"
ImagesArgument = Annotated[list[int], typer.Argument(help="Two or more image ids.", metavar="IMAGE_ID...")]
KindOption = Annotated[Literal["near", "similar"], typer.Option(help="Pairs of this kind.")]
JudgedModelOption = Annotated[str, typer.Option("--model", "-m", help="The model that finds the pairs.")]


def accept(
    context: typer.Context,
    images: Annotated[
        list[int] | None, typer.Argument(help="Two or more image ids; or none, with --above.", metavar="[IMAGE_ID...]")
    ] = None,
    above: Annotated[
        float | None, typer.Option(min=0, max=1, help="All pairs without a verdict that are at least so similar.")
    ] = None,
    kind: KindOption = "near",
    model: JudgedModelOption = "duplicates",
    collection: CollectionOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Record that images are copies of each other. With --above, counts the pairs first and asks."""
    terminal = terminal_of(context)
    if above is None:
        _judge(terminal, images or [], "accepted")
        return
    if images:
        raise UsageError("image ids and --above do not go together", hint="give either")
    with database_url(terminal.settings) as url, connect(url) as connection:
        pairs = _waiting(terminal, url, connection, model, kind, above, collection)
        count = _counted(pairs)
        if not pairs:
            terminal.notify(f"{count} without a verdict: nothing to accept")
            return
        if not yes:
            typer.confirm(f"Accept {count}?", abort=True, err=True)
        judge(connection, [(pair.image_a, pair.image_b) for pair in pairs], "accepted")
        terminal.notify(f"{count} accepted")


def reject(context: typer.Context, images: ImagesArgument) -> None:
    """Record that images are not copies of each other; those pairs are never reported again."""
    _judge(terminal_of(context), images, "rejected")


def forget(context: typer.Context, images: ImagesArgument) -> None:
    """Delete the verdicts on images."""
    _judge(terminal_of(context), images, None)


def review(
    context: typer.Context,
    above: Annotated[
        float | None, typer.Option(min=0, max=1, help="The lowest similarity. Default: the model's threshold.")
    ] = None,
    kind: Annotated[
        Literal["near", "similar"] | None,
        typer.Option(help="Only this kind. Default: near; with --above, both."),
    ] = None,
    model: JudgedModelOption = "duplicates",
    collection: CollectionOption = None,
) -> None:
    """Judge pairs one by one, with one key each, most similar first. Each verdict is recorded at once."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        pairs = _waiting(terminal, url, connection, model, kind, above, collection)
        terminal.notify(f"{_counted(pairs)} without a verdict. {KEYS}" if pairs else "no pair is without a verdict")
        verdicts = _ask(terminal, connection, pairs)
    accepted, rejected = (sum(one == verdict for one in verdicts) for verdict in ("accepted", "rejected"))
    terminal.show_one({"accepted": accepted, "rejected": rejected, "left": len(pairs) - accepted - rejected})


def _ask(terminal: Terminal, connection: Connection, pairs: list[WaitingPair]) -> list[Verdict | None]:
    """What a person says of each pair, as far as he went; None for those that he skipped."""
    verdicts: list[Verdict | None] = []
    while len(verdicts) < len(pairs):
        pair = pairs[len(verdicts)]
        images = shown_images(connection, [pair.image_a, pair.image_b])
        if len(images) < 2:
            pairs.pop(len(verdicts))
            continue
        _show(terminal, f"{len(verdicts) + 1} of {len(pairs)}", pair, list(images.values()))
        key = _key({"a", "r", "s", "u", "q"})
        if key == "q":
            break
        if key == "u":
            if verdicts and verdicts.pop() is not None:
                last = pairs[len(verdicts)]
                judge(connection, [(last.image_a, last.image_b)], None)
            continue
        verdict: Verdict | None = {"a": "accepted", "r": "rejected"}.get(key)  # type: ignore[assignment]
        if verdict is not None:
            judge(connection, [(pair.image_a, pair.image_b)], verdict)
        terminal.notify(verdict or "skipped")
        verdicts.append(verdict)
    return verdicts


def _show(terminal: Terminal, place: str, pair: WaitingPair, images: list[ShownImage]) -> None:
    terminal.notify(f"{place}: {pair.kind}, similarity {pair.similarity:.4f}")
    terminal.draw([image.location for image in images], THUMBNAIL)
    for image in images:
        taken = f", taken {image.taken_at[:19]}" if image.taken_at else ""
        terminal.notify(
            f"  image {image.image_id}: {image.width} x {image.height}, {image.format}, "
            f"{image.bytes / 1024:,.0f} KB{taken}, {image.collection}: {image.path}"
        )


def _key(allowed: set[str]) -> str:
    """The next key of these, from a terminal or, for scripts, from standard input; q where that ends."""
    while True:
        try:
            key = typer.getchar()[:1] if sys.stdin.isatty() else sys.stdin.read(1) or "q"
        except EOFError:
            return "q"
        if key.lower() in allowed:
            return key.lower()


def _waiting(
    terminal: Terminal, url: str, connection: Connection, name: str, kind: str | None, above: float | None,
    collection: str | None,
) -> list[WaitingPair]:  # fmt: skip
    model = stored_model(connection, name)
    kinds = [kind or "near"] if kind or above is None else ["near", "similar"]
    find_all(terminal, url, [model], above, kinds, {}, How("auto", "auto", 2, anew=False), collection)
    near = with_thresholds(connection, model, collection).near
    if above is not None and near is not None and kinds == ["near"] and above < near:
        terminal.notify(f"near pairs of {model.name} begin at {near:.4g}; those below are similar")
    return waiting_pairs(
        connection, GroupRequest(model=model.name, threshold=above, kinds=kinds, collection=collection)
    )


def _counted(pairs: list[WaitingPair]) -> str:
    images = len({image for pair in pairs for image in (pair.image_a, pair.image_b)})
    return f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of {images} images"


def _judge(terminal: Terminal, images: list[int], verdict: Verdict | None) -> None:
    chosen = sorted(set(images))
    if len(chosen) < 2:
        raise UsageError("give two images or more", hint="use the ids of the table or the gallery")
    pairs = [(a, b) for place, a in enumerate(chosen) for b in chosen[place + 1 :]]
    with database_url(terminal.settings) as url, connect(url) as connection:
        judge(connection, pairs, verdict)
    terminal.notify(f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} {verdict or 'forgotten'}")
