"""What a plan leaves out, as somebody would lose more than a copy: files that belong to it, and what a camera wrote."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from pgimgsearch.database.connection import Connection
from pgimgsearch.duplicates.plan import Move
from pgimgsearch.duplicates.same_picture import difference
from pgimgsearch.sources.open_image import open_image
from pgimgsearch.sources.selection import KINDS

# Raw images, Live Photos and videos beside a still, edits and descriptions of Apple, Adobe and Google.
COMPANIONS = frozenset([*KINDS["RAW"].split(), ".mov", ".mp4", ".aae", ".xmp", ".json"])
TOLD = ("taken_at", "camera", "latitude", "longitude")
BEHIND = ("depth", "frames", "extra", "transparent")  # bits, frames, layers or a video behind the pixels, a cutout
NAMED = 3


def hold_back(
    connection: Connection, moves: Sequence[Move], *, allow_metadata_loss: bool = False
) -> tuple[list[Move], list[str]]:
    """The moves that lose nothing but a copy, and what is left out, for people."""
    about = _about(connection, {one for move in moves for one in (move.image_id, move.keeper_id)})
    kept, with_companions, with_loss, with_more = [], [], [], []
    companions = lru_cache(maxsize=16)(_companions)  # of this look, as files come and go
    unlike: dict[str, list[Move]] = {}
    compared: dict[tuple[str, str], str | None] = {}  # once for equal files
    for move in moves:
        files = move.sha256, move.keeper_sha256
        own, keeper = about.get(move.image_id, {}), about.get(move.keeper_id, {})
        if _has_companions(move.location, companions):
            with_companions.append(move)
        elif any(_number(own.get(key)) > _number(keeper.get(key)) for key in BEHIND):
            with_more.append(move)
        elif not allow_metadata_loss and any(key in own and own[key] != keeper.get(key) for key in TOLD):
            with_loss.append(move)
        elif move.kind == "identical":
            kept.append(move)
        else:
            if files not in compared:
                compared[files] = _difference(move)
            if (why := compared[files]) is None:
                kept.append(move)
            else:
                unlike.setdefault(why, []).append(move)
    told = [
        f"{len(moves)} of the images look alike, but {why}: left out: {_some(moves)}" for why, moves in unlike.items()
    ]
    if with_companions:
        told.append(f"{_count(with_companions)} files that belong to them (RAW, video, XMP, JSON): left out; "
                    f"move them together by hand: {_some(with_companions)}")  # fmt: skip
    if with_more:
        told.append(
            f"{_count(with_more)} more bits, frames, transparency, layers or data than their keeper: left out: "
            f"{_some(with_more)}"
        )
    if with_loss:
        told.append(f"{_count(with_loss)} another date, place or camera than their keeper, or it has none: left out; "
                    f"add --allow-metadata-loss: {_some(with_loss)}")  # fmt: skip
    return kept, told


def _about(connection: Connection, images: Iterable[int]) -> dict[int, Mapping[str, Any]]:
    rows = connection.execute(
        "select i.image_id, c.about from imgsearch.image i join imgsearch.content c using (content_id) "
        "where i.image_id = any(%s)",
        [list(images)],
    ).fetchall()
    return dict(rows)


@lru_cache(maxsize=1)  # its copies follow each other
def _keeper(location: str) -> Image.Image:
    return open_image(location)


def _difference(move: Move) -> str | None:
    """Why a copy that a model found is not the picture of its keeper."""
    try:
        return difference(open_image(move.location), _keeper(move.keeper))
    except Exception:  # broken bytes raise anything
        return "one of them cannot be read"


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0


def _has_companions(location: str, companions: Callable[[str], tuple[frozenset[str], Counter[str]]]) -> bool:
    """Whether a file beside it has its name but for the ending, or with more behind it."""
    path = Path(location)
    own, stem = path.name.casefold(), path.stem.casefold()
    names, stems = companions(os.path.realpath(path.parent))
    return own in names or stems[stem] > (path.suffix.casefold() in COMPANIONS)


def _companions(folder: str) -> tuple[frozenset[str], Counter[str]]:
    """Of the files of a folder that may belong to others: the names that they have more behind, and their stems."""
    try:
        found = [name.casefold() for name in os.listdir(folder)]  # noqa: PTH208
    except OSError:  # what cannot be listed is left to --apply
        found = []
    companions = [name for name in found if Path(name).suffix in COMPANIONS]
    longer = frozenset(name[: dot.start()] for name in companions for dot in re.finditer(r"\.", name))
    return longer & frozenset(found), Counter(Path(name).stem for name in companions)


def _count(moves: Sequence[Move]) -> str:
    return f"{len(moves)} of the copies {'has' if len(moves) == 1 else 'have'}"


def _some(moves: Sequence[Move]) -> str:
    return ", ".join([*(move.location for move in moves[:NAMED]), *(["..."] if len(moves) > NAMED else [])])
