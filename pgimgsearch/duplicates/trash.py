"""Copies put away: a trash folder, and an undo file."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgimgsearch.database import locks
from pgimgsearch.database.collections import OURS
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.contents import delete_orphans
from pgimgsearch.duplicates.plan import Move
from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.sources.decode import ImageFacts, decode, register_formats
from pgimgsearch.sources.limits import DEFAULT_LIMITS
from pgimgsearch.sources.locations import ForbiddenLocation, is_url, shown_location, stored_location
from pgimgsearch.sources.read import read_bytes
from pgimgsearch.sources.stream import open_file

UNDO = "undo.jsonl"  # in the trash folder: a line for each file, written before it is moved


IMAGE_FIELDS = {
    "image_id", "added_at", "collection_id", "collection", "key", "path", "modified_at", "group_key", "caption",
    "metadata", "sha256", "pixel_hash", "bytes", "width", "height", "format", "about",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Places:
    """Where tenants have files: their collections' folders, and rows (path, root, owner) by paths of a plan."""

    roots: list[tuple[str, str]]
    named: dict[str, list[tuple[str, str | None, str]]]


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
        going, places = {move.location for move in moves}, _places(connection, moves)
        earlier = _moved_earlier(trash)
        with _open_undo(trash, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as undo:
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
                to = _free(trash / os.path.normpath(move.location).lstrip(os.sep))
                problem = (
                    _problem(move, image, going)
                    or _problem_of_row(move, image)
                    or _problem_of_keeper(connection, move, image)
                    or _problem_of_others(connection, move, image, places)
                )
                if problem is None and not _is_inside(to, trash):
                    problem = f"a link in the trash leads to {os.path.realpath(to.parent)}"
                if problem is not None:
                    yield Outcome(move.location, problem)
                    continue
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
    if not (trash / UNDO).is_file():
        raise SourceError(f"there is no {trash / UNDO}", hint="name the folder that --trash named")
    with locks.exclusive(connection, locks.TRASH, 0, "another command is moving duplicates"):
        for line in _last_lines_first(trash):  # a name may have been taken twice
            if line.strip():
                yield from _undo_line(connection, trash, line)


def _moved_earlier(trash: Path) -> dict[tuple[str, int], Path]:
    """Where files lie in the trash, by their old place and their image's number."""
    found: dict[tuple[str, int], Path] = {}
    if not (trash / UNDO).is_file():
        return found
    with _open_undo(trash, os.O_RDONLY) as undo:
        for line in undo:
            with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):  # torn by a crash
                entry = json.loads(line)
                if _is_inside(lies := trash / entry["to"], trash):
                    found[entry["from"], entry["image"]["image_id"]] = lies
    return found


def _open_undo(trash: Path, flags: int) -> TextIO:
    """The undo file itself; raises SourceError for a link, which could lead anywhere."""
    try:
        number = os.open(trash / UNDO, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise SourceError(f"cannot open {trash / UNDO}: {error.strerror}", hint="name another folder") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise SourceError(f"{trash / UNDO} is no file", hint="name another folder")
    return open(number, "a" if flags & os.O_APPEND else "r", encoding="utf-8", errors="replace")  # noqa: PTH123


def _last_lines_first(trash: Path) -> Iterator[str]:
    """The lines of the undo file, of which one may be long and all too much."""
    with _open_undo(trash, os.O_RDONLY) as text:
        undo, starts = text.buffer, [0]
        starts += [undo.tell() for _ in iter(undo.readline, b"")]
        for start in reversed(starts[:-1]):
            undo.seek(start)
            yield undo.readline().decode("utf-8", "replace")


def _undo_line(connection: Connection, trash: Path, line: str) -> Iterator[Outcome]:
    try:
        entry = json.loads(line)
        source, target, image = trash / entry["to"], Path(entry["from"]), entry["image"]
        digest = image["sha256"]
        if not image.keys() >= IMAGE_FIELDS:
            raise KeyError("image")
        yield from _undo(connection, trash, source, target, image, digest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield Outcome(line[:80], f"a line of {UNDO} that cannot be read")
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError) as error:
        yield Outcome(entry["from"], f"the database refuses its image: {error.diag.message_primary}", str(source))


def _undo(
    connection: Connection, trash: Path, source: Path, target: Path, image: dict[str, Any], digest: str
) -> Iterator[Outcome]:
    problem = _problem_of_place(connection, source, target, image)
    if not _is_inside(source, trash):
        yield Outcome(str(target), f"{UNDO} names a file outside of the trash", str(source))
    elif source.is_file() and _digest(str(source)) != digest:
        yield Outcome(str(target), "the file in the trash has changed", str(source))
    elif problem is not None:
        yield Outcome(str(target), problem, str(source))
    elif os.path.lexists(source) and os.path.lexists(target):
        yield Outcome(str(target), "there is a file of that name again", str(source))
    elif os.path.lexists(source):  # a relative link leads nowhere from the trash, and is as it was once it is back
        target.parent.mkdir(parents=True, exist_ok=True)
        with connection.transaction():
            _restore(connection, image)
            _move(source, target)
        yield Outcome(str(target), "restored")
    elif _digest(str(target)) == digest:
        _restore(connection, image)  # the file came back, perhaps without its row; a row that is there stays
    else:
        yield Outcome(str(target), "it is not in the trash any more", str(source))


def _problem_of_place(connection: Connection, source: Path, target: Path, image: dict[str, Any]) -> str | None:
    """Why a file may not go where a line of the undo file says, which whoever gives the trash could have written.

    It must be an image, by its name and bytes, and go where its collection has it, by no link and no hidden folder.
    """
    row = connection.execute(  # by its number, as another role may have taken its name since
        "select root from imgsearch.collection where collection_id = %s", [image["collection_id"]]
    ).fetchone()
    if row is None:
        return f"there is no collection {image['collection']} any more: move it by hand"
    place, root = shown_location(image["path"], row[0]), row[0] or ""
    if os.path.normpath(place) != os.path.normpath(target):
        return f"collection {image['collection']} does not have it there"
    below = Path(os.path.relpath(place, root)) if root and not os.path.isabs(image["path"]) else target  # noqa: PTH117
    if any(part.startswith(".") and part != os.curdir for part in below.parts):
        return "its name or a folder is hidden: move it by hand"
    if root and below != target and not _is_within(target.parent, root):
        return f"a link leads out of {root}"
    if not os.path.lexists(source):
        return None
    shown = image["pixel_hash"] and bytes.fromhex(image["pixel_hash"])
    is_image = source.is_symlink() or (source.is_file() and _shows(str(source), shown))
    if not is_image or target.suffix.lower() not in register_formats():
        return "by its name or bytes it is not the image that was put away: move it by hand"
    return None


def _is_within(folder: Path, root: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root))


def _check_trash(connection: Connection, trash: Path) -> None:
    """A trash inside a collection would be ingested as new images."""
    rows = connection.execute(
        f"select name, root from imgsearch.collection where root like '/%' and {OURS}"  # noqa: S608
    ).fetchall()
    here = Path(os.path.realpath(trash))
    for name, root in rows:
        inside = here.is_relative_to(os.path.realpath(root)) and here.relative_to(os.path.realpath(root)).parts
        if inside is not False and not any(part.startswith(".") for part in inside):
            raise UsageError(
                f"{trash} is inside of collection {name}, which would take in what is moved there",
                hint="name a folder elsewhere, or a hidden one, which is left out: --trash ./.trash",
            )


def _places(connection: Connection, moves: Sequence[Move]) -> Places | None:
    """What a plan could take of other tenants, read once; None without row-level security."""
    row = connection.execute("select relrowsecurity from pg_class where oid = 'imgsearch.image'::regclass").fetchone()
    if row != (True,):
        return None
    roots = connection.execute("select root, owner from imgsearch.collection where root is not null").fetchall()
    paths = {path for move in moves for path in (move.location, os.path.realpath(move.location))}
    named: dict[str, list[tuple[str, str | None, str]]] = {}
    for path, root, owner in connection.execute(
        "select i.path, l.root, l.owner from imgsearch.image i join imgsearch.collection l using (collection_id) "
        "where i.path = any(%s)",
        [list(paths)],
    ):
        named.setdefault(path, []).append((path, root, owner))
    return Places([(os.path.realpath(root), owner) for root, owner in roots if not is_url(root)], named)


def _problem_of_row(move: Move, image: dict[str, Any]) -> str | None:
    """Why the row is not that of the plan: another path may have been given to it since."""
    if os.path.normpath(shown_location(image["path"], image["root"])) != os.path.normpath(move.location):
        return "the database has it elsewhere now"
    return None


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
    found = _digest(move.location, min(image["bytes"], DEFAULT_LIMITS.max_bytes))  # a row may say any size
    if found is None:
        return "the file is gone, of another size, or has a name that is not UTF-8"
    if found != move.sha256:
        return "the file has changed"
    if is_url(move.keeper):
        return f"its keeper is a URL, which may be gone tomorrow: {move.keeper}"
    if _digest(move.keeper, DEFAULT_LIMITS.max_bytes) != move.keeper_sha256:
        return f"its keeper is gone or has changed: {move.keeper}"
    if not _shows(move.location, image["pixel_hash"]):
        return "it is not the image that the database describes"
    try:
        if Path(move.location).samefile(move.keeper):
            return "it is its keeper's own file, by another name"
    except OSError as error:  # as for a name that is not UTF-8
        return f"it cannot be compared with its keeper: {error.strerror}"
    return None


def _problem_of_keeper(connection: Connection, move: Move, image: dict[str, Any]) -> str | None:
    """Why the keeper is no reason for a file to go: its row says what is not so, or is another tenant's."""
    kept = _facts(move.keeper)
    if kept is None:
        return f"its keeper cannot be read: {move.keeper}"
    same = kept.pixel_hash or bytes.fromhex(move.keeper_sha256)
    if move.kind == "identical" and same != (image["pixel_hash"] or image["sha256"]):
        return f"its keeper has other pixels: {move.keeper}"
    row = connection.execute(
        "select (c.pixel_hash, c.width, c.height) is not distinct from (%s, %s, %s), l.owner, "
        "l.owner = o.owner or not r.relrowsecurity from imgsearch.image i join imgsearch.content c using (content_id) "
        "join imgsearch.collection l using (collection_id) join imgsearch.collection o on o.collection_id = %s "
        "join pg_class r on r.oid = 'imgsearch.image'::regclass where i.image_id = %s",
        [kept.pixel_hash, kept.width, kept.height, image["collection_id"], move.keeper_id],
    ).fetchone()
    if row is None or not row[0]:
        return f"its keeper is not the image that the database describes: {move.keeper}"
    if not row[2]:
        return f"its keeper belongs to the role {row[1]}: {move.keeper}"
    return None


def _problem_of_others(connection: Connection, move: Move, image: dict[str, Any], places: Places | None) -> str | None:
    """Why the file is not this owner's alone: a row may name another tenant's file, which may not be ingested yet."""
    if places is None:
        return None
    here = os.path.realpath(move.location)
    around = [one for one in places.roots if Path(here).is_relative_to(one[0])]
    deepest = max((len(root) for root, _ in around), default=0)
    for root, owner in around:
        if len(root) == deepest and owner != image["owner"]:
            return f"it lies in the folder {root} of the role {owner}"
    rows = connection.execute(
        "select i.path, l.root, l.owner from imgsearch.content c join imgsearch.image i using (content_id) "
        "join imgsearch.collection l using (collection_id) where c.sha256 = %s and l.owner <> %s",
        [image["sha256"], image["owner"]],
    ).fetchall()
    for path, given, other in [*rows, *places.named.get(here, []), *places.named.get(move.location, [])]:
        if other != image["owner"] and os.path.realpath(shown_location(path, given) or os.devnull) == here:
            return f"it is an image of the role {other}, too"
    return None


def _shows(location: str, pixel_hash: bytes | None) -> bool:
    """Whether a file is an image of these pixels, which may not be known of it."""
    found = _facts(location)
    return found is not None and found.pixel_hash == pixel_hash


def _facts(location: str) -> ImageFacts | None:
    try:
        return decode(read_bytes(location, DEFAULT_LIMITS.max_bytes))[1]
    except Exception:  # broken bytes raise anything
        return None


def _digest(location: str, most: int | None = None) -> str | None:
    """The SHA-256 of a file of at most so many bytes; some of the system's never end."""
    try:
        with open_file(location) as file:
            if most is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            data = file.read(most + 1)
            return hashlib.sha256(data).hexdigest() if len(data) <= most else None
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
            "select i.image_id, i.added_at, i.collection_id, l.name as collection, l.root, l.owner, i.key, i.path, "
            "i.modified_at, i.group_key, i.caption, i.metadata::text, c.content_id, c.sha256, c.pixel_hash, "
            "c.bytes, c.width, c.height, c.format, c.about::text "
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
            "%(path)s, %(modified_at)s::timestamptz, %(group_key)s, %(caption)s, %(metadata)s::text::jsonb "
            "from imgsearch.collection l, imgsearch._store_contents(array[1], array[decode(%(sha256)s, 'hex')], "
            "array[decode(%(pixel_hash)s, 'hex')], array[%(bytes)s::bigint], array[%(width)s::integer], "
            "array[%(height)s::integer], array[%(format)s::text], array[%(about)s::text::jsonb], "
            "row_security_active('imgsearch.image')) n "
            "where l.collection_id = %(collection_id)s on conflict do nothing"
        ).format(
            sql.SQL("image_id, " if may_number else ""), sql.SQL("overriding system value " if may_number else ""),
            sql.SQL("%(image_id)s, " if may_number else ""),
        ),
        image,
    )  # fmt: skip
