"""A plan of copies to put away, which a person reads: a line for each file."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pgimgsearch.duplicates.groups import Member
from pgimgsearch.errors import SourceError


@dataclass(frozen=True, slots=True)
class Move:
    """One file of a plan: a copy, and the image that is kept for it; digests are of the files' bytes."""

    image_id: int
    location: str
    sha256: str
    bytes: int
    kind: str
    keeper_id: int
    keeper: str
    keeper_sha256: str


MOVE_FIELDS = get_type_hints(Move)


def plan(groups: Sequence[Sequence[Member]]) -> list[Move]:
    """What may go: each image but the keepers that is a duplicate of the best of its group by itself.

    A file that a keeper shows too, from another collection, stays.
    """
    kept = {os.path.realpath(member.location) for group in groups for member in group if member.keeper}
    return [
        Move(
            member.image_id, member.location, member.sha256, member.bytes, str(member.kind),
            group[0].image_id, group[0].location, group[0].sha256,
        )
        for group in groups
        for member in group
        if not member.keeper and member.kind != "linked" and os.path.realpath(member.location) not in kept
    ]  # fmt: skip


def write_plan(path: Path, moves: Sequence[Move]) -> None:
    """Write a plan, a line for each file; lines may be deleted by hand. An earlier one is not written over."""
    with path.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(move)) + "\n" for move in moves)


def read_plan(path: Path) -> list[Move]:
    """Read a plan; raises SourceError where it is none."""
    moves = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                moves += [_read_move(json.loads(line))] if line.strip() else []
            except (ValueError, TypeError, RecursionError) as error:
                raise SourceError(
                    f"{path}, line {number} is no line of a plan",
                    hint="write one and read it: pgimgsearch duplicates --plan plan.jsonl",
                ) from error
    return moves


def _read_move(fields: Any) -> Move:
    move = Move(**fields)
    for name, kind in MOVE_FIELDS.items():
        if not isinstance(getattr(move, name), kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    for digest in (move.sha256, move.keeper_sha256):
        bytes.fromhex(digest)
    for location in (move.location, move.keeper):
        if "\0" in location:
            raise ValueError("a location holds a NUL character")
    return move
