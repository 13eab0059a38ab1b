"""A page that a person can look at: questions, the SQL that asks them, and the answers as images."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgimgsearch.reports.thumbnail import data_url

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.15rem; }
pre { background: var(--soft); padding: .75rem 1rem; border-radius: .4rem; overflow-x: auto; }
.row { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; width: 9.5rem; }
figure.query img { outline: 3px solid #2a7de1; outline-offset: 2px; }
img { width: 100%; height: 9.5rem; object-fit: contain; border: 1px solid var(--line); background: #fff; }
figcaption { font-size: .75rem; overflow-wrap: anywhere; opacity: .8; }
"""


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of an answer; ``query`` marks the one that was asked with."""

    path: Path
    caption: str
    query: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """One question: its title, the SQL, and rows of tiles."""

    title: str
    sql: str
    rows: Sequence[Sequence[Tile]] = field(default_factory=list)


def write(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page, with its images inside, so that it can be sent to someone."""
    body = "\n".join(_section(section) for section in sections)
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><body><h1>{html.escape(title)}</h1>{body}</body></html>",
        "utf-8",
    )
    return path


def _section(section: Section) -> str:
    rows = "\n".join(f'<div class="row">{"".join(map(_tile, row))}</div><br>' for row in section.rows)
    return f"<h2>{html.escape(section.title)}</h2><pre>{html.escape(section.sql)}</pre>{rows or '<p>none</p>'}"


def _tile(tile: Tile) -> str:
    kind = ' class="query"' if tile.query else ""
    caption = html.escape(tile.caption)
    picture = f'<img alt="{caption}" src="{data_url(tile.path)}">'
    return f"<figure{kind}>{picture}<figcaption>{caption}</figcaption></figure>"
