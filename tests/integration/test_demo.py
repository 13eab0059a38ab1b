"""The demo's answers are right: its images are drawn, so what is true is known from their names."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgimgsearch.demo import tour


@pytest.fixture
def cli(program: Callable[..., Any]) -> Callable[..., Any]:
    """In a process of its own."""
    return program


@pytest.mark.slow
def test_the_demo_answers_rightly_and_writes_its_sheet(cli: Callable[..., Any], tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.html"
    done = cli("--json", "demo", "--sheet", str(sheet), db=None)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    groups = defaultdict(set)
    for query, rows in answers.items():
        if "search_text" in query:
            colour = re.findall(r"'(?:something )?(\w+)", query)[0]
            assert [f"/{colour}-" in row["path"] for row in rows] == [True] * 6, query
        if "duplicate_groups" in query:
            for row in rows:
                groups[row["group_id"]].add(re.sub(r"(-(same|small|recoded|bright))?\.\w+$", "", row["path"]))
    assert ["/teal-" in row["path"] for row in answers[tour.NEW_IMAGE]] == [True] * 6
    assert len(groups) == 40
    assert all(len(names) == 1 for names in groups.values())
    page = sheet.read_text()
    assert (
        page.count("<img ") == 1 + 6 + 3 * 6 + 12 * 2 + 6 + 1 + 6
    )  # asked, similar, three texts, twelve groups; a new text, a new image
    assert "http://" not in page
    assert "https://" not in page


def test_the_demo_takes_a_folder_of_ones_own(cli: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    (photos / "copy.png").write_bytes((photos / "a" / "00.png").read_bytes())
    for _ in range(2):  # a second one starts anew
        done = cli("--json", "demo", str(photos), "--sheet", str(tmp_path / "sheet.html"), db=None)
        assert done.returncode == 0, done.stderr
        (groups,) = (rows for query, rows in json.loads(done.stdout).items() if "duplicate_groups" in query)
        assert {row["path"] for row in groups} == {"a/00.png", "copy.png"}
    assert sorted(path.name for path in photos.iterdir()) == ["a", "b", "broken.jpg", "copy.png"]
