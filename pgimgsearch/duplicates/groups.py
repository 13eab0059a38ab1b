"""Groups of duplicates as the command line asks for them, with the files behind the images."""

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from psycopg.rows import class_row, dict_row

from pgimgsearch.database.connection import Connection
from pgimgsearch.sources.locations import shown_location


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """The arguments of imgsearch.duplicate_groups(); ``threshold`` none is the model's own."""

    model: str = "duplicates"
    threshold: float | None = None
    collection: str | None = None
    kinds: list[str] | None = None
    also: list[str] | None = None
    agree: str = "all"
    transformed: bool = False
    linkage: str = "medoid"
    keep: list[str] | None = None
    prefer: list[str] | None = None
    reference: list[str] | None = None
    k: int | None = None
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One image of a group; ``similarity`` and ``kind`` are with its keeper, ``minimum`` and ``median`` the group's."""

    group_id: int
    image_id: int
    keeper: bool
    similarity: float | None
    kind: str | None
    transform: str | None
    collection: str
    path: str
    width: int
    height: int
    bytes: int
    format: str
    reason: str | None
    minimum: float
    median: float
    root: str | None
    sha256: str

    @property
    def location(self) -> str:
        """Where its file is read from; empty where nothing may be read."""
        return shown_location(self.path, self.root)


def groups(connection: Connection, question: GroupRequest) -> list[list[Member]]:
    """The groups, each with what is to be kept first."""
    rows = (
        connection.cursor(row_factory=class_row(Member))
        .execute(
            "select g.group_id, g.image_id, g.keeper, g.similarity, g.kind, g.transform, "
            "g.collection_name as collection, g.path, "
            "g.width, g.height, g.bytes, g.format, g.reason, g.minimum, g.median, l.root, "
            "encode(c.sha256, 'hex') as sha256 "
            "from imgsearch.duplicate_groups(threshold => %(threshold)s, model => %(model)s, "
            "collection => %(collection)s, kinds => %(kinds)s, also => %(also)s, agree => %(agree)s, "
            "transformed => %(transformed)s, linkage => %(linkage)s, keep => %(keep)s, prefer => %(prefer)s, "
            "reference => %(reference)s, k => %(k)s, "
            "after => %(after)s) with ordinality as g "
            "join imgsearch.image i on i.image_id = g.image_id "
            "join imgsearch.content c on c.content_id = i.content_id "
            "join imgsearch.collection l on l.collection_id = i.collection_id order by g.ordinality",
            asdict(question),
        )
        .fetchall()
    )
    return [list(members) for _, members in groupby(rows, key=lambda member: member.group_id)]


def pairs(connection: Connection, question: GroupRequest, after: list[int] | None) -> list[dict[str, Any]]:
    """The pairs, most similar first, with their paths."""
    return (
        connection.cursor(row_factory=dict_row)
        .execute(
            "select d.image_a, d.image_b, d.similarity, d.kind, d.verdict, d.transform, "
            "a.path as path_a, b.path as path_b "
            "from imgsearch.duplicates(threshold => %(threshold)s, model => %(model)s, collection => %(collection)s, "
            "kinds => %(kinds)s, also => %(also)s, agree => %(agree)s, transformed => %(transformed)s, "
            "k => %(k)s, after => %(after)s) "
            "with ordinality as d "
            "join imgsearch.image a on a.image_id = d.image_a join imgsearch.image b on b.image_id = d.image_b "
            "order by d.ordinality",
            asdict(question) | {"after": after},
        )
        .fetchall()
    )
