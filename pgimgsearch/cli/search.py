"""``search`` and ``embed-text``: questions from the shell; each prints what SQL would answer."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgimgsearch.cli.stored import stored_model
from pgimgsearch.cli.terminal import (
    CollectionOption,
    CountOption,
    DeviceOption,
    ModelOption,
    TemplateOption,
    Terminal,
    TrustOption,
    join_templates,
    parse_filter,
    terminal_of,
)
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel, list_models
from pgimgsearch.database.privileges import can_write_texts
from pgimgsearch.database.texts import cache_texts, missing_texts
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import ModelError, SourceError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pgimgsearch.embeddings.loaded_model import LoadedModel

Load = Callable[[], "LoadedModel"]  # only where a vector is missing, as it takes seconds
MATCH_COLUMNS = ["image_id", "similarity", "collection", "path", "caption"]
CUT_SHOWN = 5


def search(
    context: typer.Context,
    image: Annotated[Path | None, typer.Argument(help="An image file; it need not be stored.")] = None,
    text: Annotated[str | None, typer.Option(help="The text to search for.")] = None,
    image_id: Annotated[
        int | None,
        typer.Option("--id", max=2**63 - 1, help="The image_id of a stored image."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Default: the alias default, or text.")] = None,
    count: CountOption = 10,
    collection: CollectionOption = None,
    filter_json: Annotated[
        str | None,
        typer.Option(
            "--filter",
            help='Only images with this metadata, as JSON: {"colour": "red"}.',
        ),
    ] = None,
    min_similarity: Annotated[float | None, typer.Option(help="Drop less similar images.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Read all vectors instead of the index.")] = False,
    template: TemplateOption = None,
    crop: Annotated[str | None, typer.Option(help="A part of the upright image, in pixels: x,y,width,height.")] = None,
    device: DeviceOption = "auto",
    trust: TrustOption = False,
) -> None:
    """Find images similar to a file, to a stored image, or to a text."""
    terminal = terminal_of(context)
    if sum(given is not None for given in (image, text, image_id)) != 1:
        raise UsageError(
            "give one of an image, --text or --id", hint='for example: pgimgsearch search --text "red shoes"'
        )
    part, held = _crop(crop), parse_filter(filter_json)
    if part is not None and image is None:
        raise UsageError("--crop is for an image", hint="for example: pgimgsearch search one.jpg --crop 0,0,200,200")
    limits = {"k": count, "filter": None if held is None else Jsonb(held), "collection": collection,
              "min_similarity": min_similarity, "exact": exact}  # fmt: skip
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = stored_model(connection, model or ("text" if text is not None else "default"))

        def load() -> "LoadedModel":
            return _load(connection, stored, device, trust=trust)

        if text is not None:
            rows = _ask_with_text(terminal, connection, text, stored, limits, join_templates(template) or "{}", load)
        elif image_id is not None:
            rows = _ask(connection, "similar", image_id, stored, limits)
        else:
            assert image is not None
            rows = _ask_with_picture(connection, image, part, stored, limits, load)
    terminal.show(rows, MATCH_COLUMNS)


def embed_text(
    context: typer.Context,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to embed.", metavar="TEXT...")] = None,
    model: ModelOption = "text",
    from_file: Annotated[Path | None, typer.Option("--from", help="A file with one text a line.")] = None,
    template: TemplateOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Embed texts and cache their vectors, so that imgsearch.search_text() finds them."""
    terminal = terminal_of(context)
    wanted = [*(texts or []), *(_lines(from_file) if from_file else [])]
    if not wanted:
        raise UsageError("no text was given", hint='for example: pgimgsearch embed-text "red shoes"')
    form = join_templates(template) or "{}"
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = stored_model(connection, model)
        embedded = _cache_missing(terminal, connection, stored, wanted, form, lambda: _load(connection, stored, device))
    terminal.show_one({"model": stored.name, "texts": len(wanted), "embedded": embedded})


def _ask(
    connection: Connection, function: str, what: object, model: StoredModel, limits: dict[str, Any]
) -> list[dict[str, Any]]:
    """One of our search functions, with the limits that the command line offers."""
    functions = {
        "similar": "select * from imgsearch.similar(%(what)s, ",
        "search_text": "select * from imgsearch.search_text(%(what)s, template => %(template)s, ",
        "similar_to": "select * from imgsearch.similar_to(%(what)s, ",
        "similar_to_bits": "select * from imgsearch.similar_to_bits(%(what)s, ",
    }
    named = (
        "model => %(model)s, k => %(k)s, filter => %(filter)s, collection => %(collection)s, "
        "min_similarity => %(min_similarity)s, exact => %(exact)s)"
    )
    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute(functions[function] + named, limits | {"what": what, "model": model.name}).fetchall()


def _ask_with_picture(
    connection: Connection, path: Path, crop: list[int] | None, model: StoredModel, limits: dict[str, Any], load: Load
) -> list[dict[str, Any]]:
    from pgimgsearch.embeddings.embed_query import embed_image

    vector = embed_image(load(), path, crop)
    return _ask(connection, "similar_to_bits" if model.storage == "bit" else "similar_to", vector, model, limits)


def _ask_with_text(
    terminal: Terminal,
    connection: Connection,
    text: str,
    model: StoredModel,
    limits: dict[str, Any],
    template: str,
    load: Load,
) -> list[dict[str, Any]]:
    """Through the cache; a role that may not write to it asks with the vector itself."""
    missing = model.has_text and bool(missing_texts(connection, model, [text], template))
    if missing and not can_write_texts(connection):
        from pgimgsearch.embeddings.binary_copy import literal

        vector = _embed(terminal, load(), [text], template)[0]
        return _ask(connection, "similar_to", literal(vector), model, limits)
    _cache_missing(terminal, connection, model, [text], template, load)
    return _ask(connection, "search_text", text, model, limits | {"template": template})


def _embed(terminal: Terminal, model: "LoadedModel", texts: list[str], template: str) -> "NDArray[np.float32]":
    """The vectors of texts; those that the model does not read to their ends are named."""
    vectors = model.embed_texts(texts, template)
    cut = model.cut_texts(model.long_forms(texts, template))
    for one in cut[:CUT_SHOWN]:
        terminal.notify(one.said_of(model.stored.name))
    if len(cut) > CUT_SHOWN:
        terminal.notify(f"and of {len(cut) - CUT_SHOWN} more texts not all")
    return vectors


def _cache_missing(
    terminal: Terminal, connection: Connection, model: StoredModel, texts: list[str], template: str, load: Load
) -> int:
    """Embed the texts that are not cached; the model is loaded only if there are any. Returns their number."""
    if not model.has_text:
        able = [found.name for found in list_models(connection) if found.has_text]
        raise ModelError(
            f"model {model.name} cannot read text",
            hint=f"models here that can: {', '.join(able)}"
            if able
            else "add one that can: pgimgsearch models add clip-vit-b-32",
        )
    missing = missing_texts(connection, model, texts, template)
    if missing:
        vectors = _embed(terminal, load(), missing, template)
        cache_texts(connection, model, missing, vectors, template)
    return len(missing)


def _load(connection: Connection, model: StoredModel, device: str, *, trust: bool = False) -> "LoadedModel":
    from pgimgsearch.embeddings.registry import open_model
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint

    return open_model(connection, model.name, Checkpoint(trust=trust), Placement(device))


def _crop(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if re.fullmatch(r"\d+,\d+,\d+,\d+", text) is None:
        raise UsageError(f"--crop {text} is not x,y,width,height", hint="for example: --crop 10,20,300,200")
    return [int(number) for number in text.split(",")]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {path}: {error}", hint="give a text file in UTF-8") from error
