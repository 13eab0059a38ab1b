"""Names are data: whatever files, captions and collections are called, no terminal and no page obeys it."""

import ast
import html.parser
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgimgsearch
from pgimgsearch.cli.terminal import OBEYED, printable
from pgimgsearch.database.connection import Connection
from tests.conftest import ROOT
from tests.support.images import photo

PIECES = [
    "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07", "\x1b[2J\x1b[31m", "\x9b31m", "\x07\x08\x7f", "\nerror: forged", "\r", "\t",
    "[/b]", "[link=https://evil.example]x[/link]", "[red]", "[", "]", ":smile:", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)", "&lt;", "&#60;", "\u202etxt.gpj", "\u2066", "\u200f", "\u2028", "{0}", "%s", "%(x)s", "$HOME", "`id`",
    "; rm -rf x", "ä€", "日本語", "👨‍👩‍👧", "e\u0301", "-rf", "--help", " ", "..", "javascript:alert(1)", "</figcaption>", "<!--", "]]>",
]  # fmt: skip


def hostile(number: int) -> str:
    """A name from pieces, the same for a number; each piece alone first."""
    if number < len(PIECES):
        return PIECES[number]
    random = Random(number)
    return "".join(random.sample(PIECES, 3))


@pytest.fixture
def shop(tmp_path: Path, ingest: Callable[..., Any], connection: Connection) -> Path:
    """200 images with such names, captions, groups and metadata; pairs of copies, a broken file, a name that is no UTF-8."""
    folder = tmp_path / "shop [b] <i>\x1b[2J"
    picture = [io.BytesIO(photo(tmp_path / f"{n}.png", n).read_bytes()) for n in range(100)]
    folder.mkdir()
    for number in range(200):
        name = f"{number} {hostile(number)}".replace("/", "|")[:80] + ".png"
        (folder / name).write_bytes(picture[number % 100].getvalue())
    photo(folder / "x[" / "b].png", 7)  # as a path it is x[/b].png
    (folder / f"broken {hostile(1)}.jpg").write_bytes(b"broken")
    (folder / os.fsdecode(b"no utf-8 \xff\xfe.png")).write_bytes(picture[0].getvalue())
    ingest(folder, "palette", "pdq", collection="shop [/b] \x1b[2J<b>")
    for image, number in connection.execute("select image_id, image_id::integer from imgsearch.image").fetchall():
        words = {hostile(number): hostile(number + 1)}
        connection.execute(
            "update imgsearch.image set caption = %s, group_key = %s, metadata = %s where image_id = %s",
            [hostile(number), hostile(number + 1), json.dumps(words), image],
        )
    return folder


def test_no_table_and_no_message_is_obeyed(
    shop: Path, cli: Callable[..., Any], tmp_path: Path, connection: Connection
) -> None:
    commands = [
        ["search", "--id", "1", "-k", "300", "--model", "palette"], ["search", "--text", "red", "-k", "300"], ["stats"], ["models", "list"],
        ["duplicates", "--model", "palette", "--threshold", "0.999"], ["duplicates", "--pairs", "--model", "palette", "--threshold", "0.99"],
        ["duplicates", "--of", str(sorted(shop.iterdir())[3]), "--model", "palette", "--threshold", "0.99"],
        ["doctor"], ["ingest", str(shop), "-m", "palette", "-c", "shop [/b] \x1b[2J<b>"], ["ingest", str(shop / "gone [/b]\x1b[2J")],
        ["search", "--image", str(shop / "gone [/b]\x1b[2J.png")], ["search", "--id", "1", "--collection", "none [/b] \x1b[2J"],
        ["models", "add", "no model [/b] \x1b[2J"], ["search", "--text", "red \x1b[2J[/b]", "--model", "palette"],
        ["index", "status"], ["duplicates", "--plan", str(tmp_path / "plan.jsonl"), "--model", "palette", "--threshold", "0.99"],
    ]  # fmt: skip
    for command in commands:
        for options in ([], ["--json"]):
            done = cli(*options, *command)
            assert "Traceback" not in done.stderr, (command, done.stderr)
            for text in (done.stdout, done.stderr):
                assert not OBEYED.search(text.replace("\n", "")), (command, OBEYED.search(text.replace("\n", "")))
                assert not re.search("^error: forged", text, re.MULTILINE), command
    shown = cli("search", "--id", "1", "-k", "300", "--model", "palette", "--json").stdout
    keys = {row["key"] for row in json.loads(shown)}
    stored = {row[0] for row in connection.execute("select key from imgsearch.image where image_id > 1").fetchall()}
    assert len(keys) > 190
    assert keys <= stored | keys & stored, "as JSON the names are whole"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_what_a_terminal_cannot_show_is_escaped(shop: Path, url: str, encoding: str) -> None:
    for options in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "pgimgsearch", *options, "search", "--id", "1", "-k", "300", "--model", "palette"],
            cwd=ROOT, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": encoding, "PGIMGSEARCH_DB": url},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode(encoding)
        assert text.count("png") > 150
        if options:
            assert len(json.loads(text)) > 190


class Page(html.parser.HTMLParser):
    """The tags of a page, and the attributes that could act."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.acting: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.acting += [(name, value) for name, value in attrs if name.startswith("on")]
        self.acting += [
            (name, value) for name, value in attrs
            if name in {"src", "href"} and not (value or "").startswith(("data:image/", "#", "page", "/openapi"))
            and not re.fullmatch(r"[\w.-]+\.html(#\w*)?", value or "")
        ]  # fmt: skip


def test_no_page_is_obeyed(shop: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    pages = {
        "duplicates": ["duplicates", "--model", "palette", "--threshold", "0.99", "--html", str(tmp_path / "duplicates.html")],
        "compare": ["models", "compare", "palette", "pdq", "--html", str(tmp_path / "compare.html")],
    }  # fmt: skip
    for name, command in pages.items():
        done = cli(*command)
        assert done.returncode == 0, done.stderr
        found = sorted(tmp_path.glob(f"{name}*.html"))
        assert found
        for path in found:
            page = Page()
            page.feed(path.read_text("utf-8"))
            assert page.acting == []
            assert page.tags <= {
                "html", "meta", "title", "style", "body", "h1", "h2", "p", "nav", "a", "section", "div", "figure", "img", "figcaption",
                "b", "small", "code", "table", "tr", "td", "th", "br", "span",
            }, page.tags  # fmt: skip


@given(st.text())
def test_printable_is_one_line_that_nothing_obeys(text: str) -> None:
    assert not OBEYED.search(printable(text))
    assert OBEYED.search(text) or printable(text) == text


def test_no_message_of_ours_is_two_lines() -> None:
    """It would be shown with an escape, as what a file is called might hold one."""
    loose = [
        (path.name, call.lineno)
        for path in Path(pgimgsearch.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and (
            (name := getattr(call.func, "attr", getattr(call.func, "id", ""))) in {"notify", "say"}
            or name.endswith("Error")
        )
        for part in ast.walk(call)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and "\n" in part.value
    ]
    assert loose == []
