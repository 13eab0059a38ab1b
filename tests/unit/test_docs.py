"""The documents say what is there: every command and function, snippets that run, data files that are right."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import document
from pgimgsearch.cli.app import app
from pgimgsearch.database.functions import current_functions, signatures
from pgimgsearch.evaluation.protocols import FIGURES, PROTOCOLS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def commands(group: Any, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield f"{prefix}{name}"
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")


def test_every_command_is_documented_and_helpful() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    root = typer.main.get_command(app)
    found = list(commands(root))
    assert len(found) > 20
    for name in found:
        assert f"| `{name}` |" in operations, name
    for row in re.findall(r"^\| `([a-z -]+)` \|", operations, re.MULTILINE):
        assert row in found, row


def test_every_protocol_and_figure_is_documented() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    for name in [*(protocol.name for protocol in PROTOCOLS), *FIGURES]:
        assert f"`{name}`" in text, name


def test_every_function_is_documented() -> None:
    text = (ROOT / "docs" / "sql-api.md").read_text()
    for name, _ in signatures(current_functions()):
        assert name.startswith("imgsearch._") or f"`{name}(" in text, name
    for file in (ROOT / "sql").glob("*.sql"):
        for before in re.findall(r"(.*)\ncreate or replace function", file.read_text()):
            assert before.startswith("-- "), f"{file.name}: a function without a purpose line: {before}"


def test_every_promise_of_security_has_its_test() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    promised = re.findall(r"`(test_\w+)`", text)
    assert len(promised) > 25
    written = "".join(path.read_text() for path in (ROOT / "tests" / "security").glob("*.py"))
    assert [name for name in promised if f"def {name}(" not in written] == []


PRIVATE_WORDS = re.compile(
    r"\b(pictures?|aside|wish(es|ed)?|diskann|ivfflat|--draft|external_id|pixel_sha256|invariant)\b|"
    r"leaves the talk out|gone on with|has no say|makes up for it|take turns|at the door|else it is said|forth again"
)


def help_texts(group: Any) -> Iterator[str]:
    for command in group.commands.values():
        yield command.help or ""
        yield from (getattr(parameter, "help", None) or "" for parameter in command.params)
        if hasattr(command, "commands"):
            yield from help_texts(command)


def test_what_users_read_has_one_vocabulary() -> None:
    """Image, content, model, embedding, source, collection, key; and no word of the code's own."""
    texts = [path.read_text() for path in [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]]
    texts += list(help_texts(typer.main.get_command(app)))
    assert len(texts) > 100
    assert [found.group() for text in texts for found in PRIVATE_WORDS.finditer(text)] == []


def sentences(text: str) -> Iterator[str]:
    """Of prose, list items and table cells; code in one word."""
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", text))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.)\s)|\|", text):
        yield from re.split(r"(?<=[.!?])\s+", " ".join(block.split()))


def test_no_sentence_is_too_long() -> None:
    """At most 30 words, in the documents and in the help."""
    texts = [path.read_text() for path in [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]]
    texts += list(help_texts(typer.main.get_command(app)))
    found = [sentence for text in texts for sentence in sentences(text)]
    assert len(found) > 1000
    assert [sentence for sentence in found if len(sentence.split()) > 30] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_command_lines_are_ones_the_program_takes(path: Path) -> None:
    lines = [line for block in blocks(path, "sh") for line in block.splitlines() if "pgimgsearch " in line]
    for line in lines:
        words = shlex.split(line, comments=True)
        if not words[0].endswith("pgimgsearch"):
            continue
        command, arguments = typer.main.get_command(app), words[1:]
        while hasattr(command, "commands"):
            if command.invoke_without_command and (not arguments or arguments[0] not in command.commands):
                break
            name = next(word for word in arguments if not word.startswith("-"))
            assert name in command.commands, line
            command, arguments = command.commands[name], arguments[arguments.index(name) + 1 :]
        command.make_context(name, arguments)  # raises on what it does not know


def test_no_placeholder_is_left() -> None:
    for path in [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]:
        assert not re.findall(r"\b[A-Z]+_(?:OURS|REF|HAND|RATIO)\b|TODO|TBD|FIXME", path.read_text()), path.name


def test_the_figures_are_those_of_the_results_file() -> None:
    figures = json.loads(document.FIGURES.read_text())
    assert document.document(figures) == document.DOCUMENT.read_text(), "run: make docs"


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), (path.name, target)


def test_every_dependency_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [one for extra in [project["dependencies"], *project["optional-dependencies"].values()] for one in extra]
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert {re.split(r"[\[<>=]", one)[0] for one in named} - pinned == {"pgimgsearch"}
