"""Pages that hold all they need, so that they can be sent to someone: for a screen or a phone, light or dark."""

import html
import secrets
from pathlib import Path
from typing import Any

from pgimgsearch.errors import ModelError

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --keep: #1a7f37; --copy: #b35900; }
* { box-sizing: border-box; }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: .5rem 0; }
nav { display: flex; gap: 1rem; flex-wrap: wrap; margin: 1rem 0; }
section { border: 1px solid var(--line); border-radius: .6rem; padding: .75rem; margin: 1rem 0; }
h2 { font-size: 1rem; margin: 0 0 .6rem; }
h2 small { font-weight: normal; opacity: .75; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: .75rem; }
figure { margin: 0; border: 2px solid var(--line); border-radius: .5rem; overflow: hidden; }
figure.keep { border-color: var(--keep); }
img { display: block; width: 100%; height: 15rem; object-fit: contain; background: var(--soft); }
figcaption { padding: .5rem .6rem; font-size: .85rem; overflow-wrap: anywhere; }
b { display: inline-block; padding: 0 .45rem; border-radius: 1rem; color: #fff; background: var(--copy); }
.keep b { background: var(--keep); }
code { font-size: .8rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .row { grid-template-columns: 1fr 1fr; gap: .5rem; } img { height: 9rem; } }
"""


def html_page(title: str, body: str, style: str = "") -> str:
    """A whole page; ``body`` is HTML, the title is text."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style><body><h1>{html.escape(title)}</h1>"
        f"{body}</body></html>"
    )


def figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches; raises ModelError with the command that installs it."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps every figure
    except ImportError as error:
        raise ModelError("a plot needs matplotlib", hint="run: pip install 'pgimgsearch[analysis]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def write_page(path: Path, page: str) -> None:
    """Write a page aside and rename it, so that a full disk leaves an earlier one as it was."""
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(page)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
