"""Two models on one page: the images on which they disagree most, with what each finds."""

import html
from collections.abc import Sequence
from pathlib import Path

from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import UsageError
from pgimgsearch.operations.neighbour_overlap import NeighbourPair, overlap
from pgimgsearch.reports.html import html_page, write_page
from pgimgsearch.reports.thumbnail import data_url
from pgimgsearch.sources.locations import shown_location

SHOWN = 12  # images; that is up to 252 images, of about 10 kB each
STYLE = """
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; }
.wide { overflow-x: auto; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30%, 6.5rem), 1fr)); gap: .4rem;
    margin: .3rem 0 .8rem; }
.answers img { height: 6.5rem; } .answers figcaption { font-size: .7rem; padding: .2rem .4rem; }
figure.both { border-color: var(--keep); } .both b { background: var(--keep); } .question { max-width: 12rem; }
"""


def check(path: Path) -> None:
    """Raise what would keep the page from being written, before the work and not after."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError(f"cannot write {path}", hint="name a file in a folder that exists: --html page.html")


def write(
    connection: Connection, path: Path, names: tuple[str, str], seen: Sequence[NeighbourPair],
    figures: Sequence[Sequence[str]] = (),
) -> None:  # fmt: skip
    """Write the page; ``figures`` are rows of a table, the first its head."""
    worst = sorted(seen, key=lambda image: (image.share, image.image_id))[:SHOWN]
    wanted = {one for image in worst for one in (image.image_id, *image.one, *image.other)}
    rows = connection.execute(
        "select i.image_id, i.path, l.root from imgsearch.image i join imgsearch.collection l using (collection_id) "
        "where i.image_id = any(%s)",
        [list(wanted)],
    ).fetchall()
    pictures = {image: (name, data_url(shown_location(name, root), 160)) for image, name, root in rows}
    common = overlap(seen)
    said = "They have no images in common." if common is None else (
        f"Of the ten nearest images, both name {common:.1%}, over {len(seen)} images drawn at random. Below are those "
        "on which they disagree most; what both name has a green frame."
    )  # fmt: skip
    body = f"<p>{said}</p>{_table(figures)}" + "".join(_section(image, names, pictures) for image in worst)
    write_page(path, html_page(f"{names[0]} and {names[1]}", body, STYLE))


def _table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    cells = [
        "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)
        for kind, row in zip(["th", *["td"] * len(rows)], rows, strict=False)
    ]
    return f'<div class="wide"><table>{"".join(cells)}</table></div>'


def _section(image: NeighbourPair, names: tuple[str, str], pictures: dict[int, tuple[str, str]]) -> str:
    both = {*image.one} & {*image.other}
    found = ((image.one, image.one_similarities), (image.other, image.other_similarities))
    rows = "".join(
        f'<h2>{html.escape(name)}</h2><div class="answers">'
        + "".join(
            _figure(pictures[one], "both" if one in both else "", f"{similarity:.3f}")
            for one, similarity in zip(ids, similarities, strict=True)
            if one in pictures  # removed meanwhile
        )
        + "</div>"
        for name, (ids, similarities) in zip(names, found, strict=True)
    )
    question = _figure(pictures[image.image_id], "question", "asked") if image.image_id in pictures else ""
    return f"<section>{question}<p>{len(both)} of {max(len(image.one), len(image.other))} in common</p>{rows}</section>"


def _figure(picture: tuple[str, str], kind: str, badge: str) -> str:
    name, url = picture
    return (
        f'<figure class="{kind}"><img loading="lazy" alt="{html.escape(name)}" src="{html.escape(url)}">'
        f"<figcaption><b>{badge}</b> {html.escape(name)}</figcaption></figure>"
    )
