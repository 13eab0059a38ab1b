"""The gallery of duplicates, also in a real browser where there is one."""

import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pgimgsearch.database.connection import Connection
from pgimgsearch.duplicates import report
from pgimgsearch.duplicates.groups import GroupRequest, groups
from tests.support.images import photo

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def copies(tmp_path: Path, ingest: Callable[..., Any]) -> Path:
    """Three images in red, green and blue tones with small copies; one name wants escaping."""
    folder = tmp_path / "photos"
    for number, name in enumerate(["<b>red & co.png", "1.png", "2.png"]):
        picture = Image.open(photo(folder / "drawn.png", seed=(3, 6, 10)[number], size=(320, 240)))
        tone = Image.new("RGB", picture.size, [(255, 0, 0), (0, 255, 0), (0, 0, 255)][number])
        Image.blend(picture, tone, 0.5).save(folder / name)
        Image.open(folder / name).resize((160, 120)).save(folder / f"small {number}.png")
    (folder / "drawn.png").unlink()
    ingest(folder, "palette")
    return folder


def test_pages_hold_every_group_once(
    copies: Path, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = groups(connection, GroupRequest())
    assert len(found) == 3
    monkeypatch.setattr(report, "GROUPS_A_PAGE", 2)
    pages = report.write(tmp_path / "report.html", found, "by colours")
    assert [page.name for page in pages] == ["report.html", "report-2.html"]
    texts = [page.read_text() for page in pages]
    shown = [re.findall(r'<section id="g(\d+)"', text) for text in texts]
    assert [len(ids) for ids in shown] == [2, 1]
    assert {int(group) for ids in shown for group in ids} == {group[0].group_id for group in found}
    assert 'href="report-2.html"' in texts[0]
    assert 'href="report.html"' in texts[1]
    assert all(text.count("data:image/jpeg;base64,") == text.count("<figure") for text in texts)
    assert not re.findall(r'(?:src|href)="(?!data:|report)', "".join(texts))  # nothing from elsewhere
    assert "<b>red" not in "".join(texts)
    assert html.escape("<b>red & co.png") in "".join(texts)
    (copies / "1.png").unlink()
    report.write(tmp_path / "again.html", found, "by colours")
    assert "1.png" in (tmp_path / "again.html").read_text()


@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_pictures_side_by_side(
    copies: Path, cli: Callable[..., Any], tmp_path: Path, width: int
) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    done = cli("duplicates", "--html", str(page))
    assert done.returncode == 0, done.stderr
    subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}",
         f"--window-size={width},1400", f"--screenshot={shot}", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    pixels = np.asarray(Image.open(shot).convert("RGB"), np.int64)
    for channel in range(3):  # each tone is there twice, beside each other: keeper and copy
        strongest = pixels[..., channel] - np.max(np.delete(pixels, channel, axis=2), axis=2) > 40
        columns = strongest.sum(axis=0) > 30
        starts = int((np.diff(columns.astype(int)) == 1).sum()) + int(columns[0])
        assert starts >= 2, f"channel {channel}"
        assert int(strongest.sum()) > 5000
