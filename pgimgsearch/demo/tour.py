"""The questions of the demo and their answers, asked in the SQL that an application would use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import RawCursor
from psycopg.rows import dict_row

from pgimgsearch.database.connection import Connection
from pgimgsearch.demo.contact_sheet import Section, Tile
from pgimgsearch.errors import SourceError

SIMILAR = "select image_id, similarity, path from imgsearch.similar({id}, k => 6, model => 'palette')"
TEXT = "select image_id, similarity, path from imgsearch.search_text('{query}', k => 6)"
NEW_TEXT = "select image_id, similarity, path from imgsearch.search_text('something pink for the summer', k => 6)"
NEW_IMAGE = "select image_id, similarity, path from imgsearch.similar_to_image($1, k => 6)"
GROUPS = "select group_id, image_id, keeper, similarity, kind, path, reason from imgsearch.duplicate_groups()"


@dataclass(frozen=True, slots=True)
class Answer:
    """A question with its SQL and the rows that came back; ``asked`` is the stored image or file it was asked with."""

    title: str
    sql: str
    rows: list[dict[str, Any]]
    asked: int | Path | None = None


def ask(connection: Connection, texts: Sequence[str]) -> list[Answer]:
    """Similar images, each text, and groups of duplicates."""
    first = _rows(connection, "select min(image_id) as id from imgsearch.images_palette")[0]["id"]
    if first is None:
        raise SourceError("none of the images could be read", hint="choose a folder with photos in it")
    questions = [(f"Images in the colours of image {first}", SIMILAR.format(id=first), first)]
    questions += [(f"Images that are {text}", TEXT.format(query=text), None) for text in texts]
    questions += [("Duplicates, with the one to keep", GROUPS, None)]
    return [Answer(title, statement, _rows(connection, statement), asked) for title, statement, asked in questions]


def ask_new(connection: Connection, image: Path) -> list[Answer]:
    """A text that nobody embedded before, and an image that is not stored: the embedder answers both."""
    found = RawCursor(connection, row_factory=dict_row).execute(NEW_IMAGE, [image.read_bytes()]).fetchall()
    return [
        Answer("A new text", NEW_TEXT, _rows(connection, NEW_TEXT)),
        Answer("A new image, by its bytes", NEW_IMAGE, found, image),
    ]


def sections(connection: Connection, answers: Sequence[Answer], groups: int = 12) -> list[Section]:
    """The answers as rows of images; at most so many groups of duplicates."""
    located = {
        row["image_id"]: Path(row["root"]) / row["path"]
        for row in _rows(
            connection,
            "select image_id, root, path from imgsearch.image join imgsearch.collection using (collection_id)",
        )
    }

    def tile(row: dict[str, Any]) -> Tile:
        kept = " (keep)" if row.get("keeper") else ""
        return Tile(located[row["image_id"]], f"{row['path']} {row['similarity']:.3f}{kept}")

    def asked(answer: Answer) -> list[Tile]:
        if isinstance(answer.asked, Path):
            return [Tile(answer.asked, "new image", query=True)]
        return [] if answer.asked is None else [Tile(located[answer.asked], f"image {answer.asked}", query=True)]

    made = []
    for answer in answers:
        if "group_id" in (answer.rows[0] if answer.rows else {}):
            ids = list(dict.fromkeys(row["group_id"] for row in answer.rows))[:groups]
            rows = [[tile(row) for row in answer.rows if row["group_id"] == group] for group in ids]
        else:
            rows = [[*asked(answer), *map(tile, answer.rows)]]
        made.append(Section(answer.title, answer.sql, rows))
    return made


def _rows(connection: Connection, statement: str) -> list[dict[str, Any]]:
    return connection.cursor(row_factory=dict_row).execute(statement).fetchall()
