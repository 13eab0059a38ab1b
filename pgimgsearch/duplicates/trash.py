"""Copies put away: a trash folder, and an undo file."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.contents import delete_orphans
from pgimgsearch.duplicates.plan import Move
from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.sources.decode import decode
from pgimgsearch.sources.limits import DEFAULT_LIMITS
from pgimgsearch.sources.locations import ForbiddenLocation, is_url, stored_location
from pgimgsearch.sources.read import read_bytes
from pgimgsearch.sources.stream import open_file

UNDO = "undo.jsonl"  # in the trash folder: a line for each file, written before it is moved


IMAGE_FIELDS = {
    "image_id", "added_at", "collection", "key", "path", "modified_at", "group_key", "caption", "metadata", "sha256",
    "pixel_hash", "bytes", "width", "height", "format",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file: ``moved`` or ``restored``, or why not."""

    location: str
    outcome: str
    to: str = ""


def apply(connection: Connection, moves: Sequence[Move], trash: Path) -> Iterator[Outcome]:
    """Move copies into the trash folder and drop their images; yields what became of each.

    Nothing is moved whose bytes are not those of the plan, or whose keeper, if it is a file, is not there any more.
    What an earlier call has moved counts as moved, and loses the row that a kill may have left.
    """
    with locks.exclusive(connection, locks.TRASH, 0, "another command is moving duplicates"):
        _check_trash(connection, trash)
        trash.mkdir(parents=True, exist_ok=True)
        going = {move.location for move in moves}
        earlier = _moved_earlier(trash)
        with (trash / UNDO).open("a", encoding="utf-8") as undo:
            undo.write("\n")  # a line that a crash tore ends here
            for move in moves:
                image = _image(connection, move)
                lies = earlier.get((move.location, move.image_id))
                if lies is not None and not os.path.lexists(move.location) and _holds(lies, move.sha256):
                    if image is not None:
                        connection.execute("delete from imgsearch.image where image_id = %s", [move.image_id])
                        delete_orphans(connection, [image["content_id"]])
                    yield Outcome(move.location, "moved", str(lies))
                    continue
                if image is None:
                    yield Outcome(move.location, "the database knows it no longer, or as another image")
                    continue
                problem = _problem(move, image, going)
                if problem is not None:
                    yield Outcome(move.location, problem)
                    continue
                to = _free(trash / os.path.normpath(move.location).lstrip(os.sep))
                _write_line(undo, {"from": move.location, "to": str(to.relative_to(trash)), "image": image})
                try:
                    with connection.transaction():
                        connection.execute("delete from imgsearch.image where image_id = %s", [move.image_id])
                        _move(Path(move.location), to)
                except OSError as error:
                    yield Outcome(move.location, f"it cannot be moved: {error.strerror or error}")
                    continue
                delete_orphans(connection, [image["content_id"]])
                yield Outcome(move.location, "moved", str(to))


def undo(connection: Connection, trash: Path) -> Iterator[Outcome]:
    """Bring back what a trash folder holds, files and images; the next ingest embeds them again."""
    path = trash / UNDO
    if not path.is_file():
        raise SourceError(f"there is no {path}", hint="name the folder that --trash named")
    with locks.exclusive(connection, locks.TRASH, 0, "another command is moving duplicates"):
        for line in reversed(path.read_text("utf-8").split("\n")):  # a name may have been taken twice
            if line.strip():
                yield from _undo_line(connection, trash, line)


def _moved_earlier(trash: Path) -> dict[tuple[str, int], Path]:
    """Where files lie in the trash, by their old place and their image's number."""
    found = {}
    for line in (trash / UNDO).read_text("utf-8").split("\n") if (trash / UNDO).is_file() else []:
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):  # torn by a crash
            entry = json.loads(line)
            if _is_inside(lies := trash / entry["to"], trash):
                found[entry["from"], entry["image"]["image_id"]] = lies
    return found


def _undo_line(connection: Connection, trash: Path, line: str) -> Iterator[Outcome]:
    try:
        entry = json.loads(line)
        source, target, image = trash / entry["to"], Path(entry["from"]), entry["image"]
        digest = image["sha256"]
        if not image.keys() >= IMAGE_FIELDS:
            raise KeyError("image")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield Outcome(line[:80], f"a line of {UNDO} that cannot be read")
        return
    if not _is_inside(source, trash):
        yield Outcome(entry["from"], f"{UNDO} names a file outside of the trash", str(source))
    elif os.path.lexists(source) and os.path.lexists(target):
        yield Outcome(entry["from"], "there is a file of that name again", str(source))
    elif source.is_file() and _digest(str(source)) != digest:
        yield Outcome(entry["from"], "the file in the trash has changed", str(source))
    elif os.path.lexists(source):  # a relative link leads nowhere from the trash, and is as it was once it is back
        target.parent.mkdir(parents=True, exist_ok=True)
        with connection.transaction():
            _restore(connection, image)
            _move(source, target)
        yield Outcome(entry["from"], "restored")
    elif _digest(entry["from"]) == digest:
        _restore(connection, image)  # the file came back, perhaps without its row; a row that is there stays
    else:
        yield Outcome(entry["from"], "it is not in the trash any more", str(source))


def _check_trash(connection: Connection, trash: Path) -> None:
    """A trash inside a collection would be ingested as new images."""
    rows = connection.execute("select name, root from imgsearch.collection where root like '/%'").fetchall()
    here = Path(os.path.realpath(trash))
    for name, root in rows:
        inside = here.is_relative_to(os.path.realpath(root)) and here.relative_to(os.path.realpath(root)).parts
        if inside is not False and not any(part.startswith(".") for part in inside):
            raise UsageError(
                f"{trash} is inside of collection {name}, which would take in what is moved there",
                hint="name a folder elsewhere, or a hidden one, which is left out: --trash ./.trash",
            )


def _problem(move: Move, image: dict[str, Any], going: set[str]) -> str | None:
    """Why a file must stay: what rows say of it and of its keeper is compared with the files themselves."""
    if is_url(move.location):
        return "it is a URL"
    if not os.path.isabs(move.location):  # noqa: PTH117
        return "its path is relative, to a folder that the database does not name"
    try:
        stored_location(move.location, None)
    except ForbiddenLocation as error:
        return str(error)
    if move.keeper in going:
        return "the plan moves its keeper too"
    found = _digest(move.location)
    if found is None:
        return "the file is gone, or has a name that is not UTF-8"
    if found != move.sha256:
        return "the file has changed"
    if is_url(move.keeper):
        return f"its keeper is a URL, which may be gone tomorrow: {move.keeper}"
    if _digest(move.keeper) != move.keeper_sha256:
        return f"its keeper is gone or has changed: {move.keeper}"
    pixels = _pixels(move.location)
    if pixels != image["pixel_hash"].hex():
        return "it is not the image that the database describes"
    kept = _pixels(move.keeper)
    if kept is None or (move.kind == "identical" and kept != pixels):
        return f"its keeper {'cannot be read' if kept is None else 'has other pixels'}: {move.keeper}"
    if Path(move.location).samefile(move.keeper):
        return "it is its keeper's own file, by another name"
    return None


def _pixels(location: str) -> str | None:
    """The hash of an image's pixels; None for a file that is none."""
    try:
        return decode(read_bytes(location, DEFAULT_LIMITS.max_bytes))[1].pixel_hash.hex()
    except Exception:  # broken bytes raise anything
        return None


def _digest(location: str) -> str | None:
    try:
        with open_file(location) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # gone, or no name of a file
        return None


def _holds(path: Path, digest: str) -> bool:
    """Whether a file of the trash is the one with this digest; a relative link leads nowhere from there."""
    return path.is_symlink() or _digest(str(path)) == digest


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder, by its real place; of a link, the place of the link."""
    parent = Path(os.path.realpath(path.parent))
    return parent.is_relative_to(os.path.realpath(folder)) and path.name not in {"", "..", UNDO}


def _free(path: Path) -> Path:
    """A name that is not taken, as nothing is ever written over."""
    number, free = 1, path
    while os.path.lexists(free):
        number, free = number + 1, path.with_name(f"{path.stem} ({number}){path.suffix}")
    return free


def _move(source: Path, target: Path) -> None:
    """Rename, or across file systems copy with times and then remove."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


def _write_line(file: Any, entry: dict[str, Any]) -> None:
    file.write(json.dumps(entry, default=_plain) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else bytes(value).hex()  # type: ignore[call-overload]


def _image(connection: Connection, move: Move) -> dict[str, Any] | None:
    """All that the database knows of an image and its content, to bring it back."""
    return (
        connection.cursor(row_factory=dict_row)
        .execute(
            "select i.image_id, i.added_at, l.name as collection, i.key, i.path, i.modified_at, i.group_key, "
            "i.caption, i.metadata, c.content_id, c.sha256, c.pixel_hash, c.bytes, c.width, c.height, c.format "
            "from imgsearch.image i join imgsearch.collection l using (collection_id) "
            "join imgsearch.content c using (content_id) where i.image_id = %s and c.sha256 = %s",
            [move.image_id, bytes.fromhex(move.sha256)],
        )
        .fetchone()
    )


def _restore(connection: Connection, image: dict[str, Any]) -> None:
    """Bring an image back, with its old number where this role may give one."""
    row = connection.execute("select has_column_privilege('imgsearch.image', 'image_id', 'insert')").fetchone()
    may_number = row == (True,)
    connection.execute(
        sql.SQL(
            "insert into imgsearch.image ({}added_at, content_id, collection_id, key, path, modified_at, group_key, "
            "caption, metadata) {}select {}%(added_at)s::timestamptz, n.content_id, l.collection_id, %(key)s, "
            "%(path)s, %(modified_at)s::timestamptz, %(group_key)s, %(caption)s, %(metadata)s "
            "from imgsearch.collection l, imgsearch._store_contents(array[1], array[decode(%(sha256)s, 'hex')], "
            "array[decode(%(pixel_hash)s, 'hex')], array[%(bytes)s::bigint], array[%(width)s::integer], "
            "array[%(height)s::integer], array[%(format)s::text], row_security_active('imgsearch.image')) n "
            "where l.name = %(collection)s on conflict do nothing"
        ).format(
            sql.SQL("image_id, " if may_number else ""), sql.SQL("overriding system value " if may_number else ""),
            sql.SQL("%(image_id)s, " if may_number else ""),
        ),
        image | {"metadata": Jsonb(image["metadata"])},
    )  # fmt: skip
