"""Verdicts of people on pairs: which pairs wait for one, and what was decided."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from psycopg.rows import class_row

from pgimgsearch.database.connection import Connection
from pgimgsearch.duplicates.groups import GroupRequest
from pgimgsearch.sources.locations import shown_location

Verdict = Literal["accepted", "rejected"]


@dataclass(frozen=True, slots=True)
class WaitingPair:
    """A pair without a verdict."""

    image_a: int
    image_b: int
    similarity: float
    kind: str


@dataclass(frozen=True, slots=True)
class ShownImage:
    """What helps a person to judge an image."""

    image_id: int
    collection: str
    path: str
    root: str | None
    width: int
    height: int
    bytes: int
    format: str
    taken_at: str | None

    @property
    def location(self) -> str:
        """Where its file is read from; empty where nothing may be read."""
        return shown_location(self.path, self.root)


def waiting_pairs(connection: Connection, question: GroupRequest) -> list[WaitingPair]:
    """The pairs of different pixels that nobody has judged, most similar first."""
    return (
        connection.cursor(row_factory=class_row(WaitingPair))
        .execute(
            "select d.image_a, d.image_b, d.similarity, d.kind from imgsearch.duplicates("
            "threshold => %(threshold)s, model => %(model)s, collection => %(collection)s, kinds => %(kinds)s) "
            "with ordinality as d where d.verdict is null and d.kind <> 'identical' order by d.ordinality",
            asdict(question),
        )
        .fetchall()
    )


def shown_images(connection: Connection, images: Sequence[int]) -> dict[int, ShownImage]:
    """What is known of images, without those that were removed meanwhile."""
    rows = (
        connection.cursor(row_factory=class_row(ShownImage))
        .execute(
            "select i.image_id, l.name as collection, i.path, l.root, c.width, c.height, c.bytes, c.format, "
            "c.about ->> 'taken_at' as taken_at from imgsearch.image i "
            "join imgsearch.content c on c.content_id = i.content_id "
            "join imgsearch.collection l on l.collection_id = i.collection_id where i.image_id = any(%s)",
            [list(images)],
        )
        .fetchall()
    )
    return {image.image_id: image for image in rows}


def judge(connection: Connection, pairs: Iterable[tuple[int, int]], verdict: Verdict | None) -> None:
    """Record a verdict on pairs of images, all or none; None removes theirs."""
    with connection.transaction():
        connection.cursor().executemany(
            "select imgsearch.judge_duplicates(%s, %s, %s)", [(a, b, verdict) for a, b in pairs]
        )
