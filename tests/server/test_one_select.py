"""Text to image and picture to image in one SELECT: SQL, dblink, the wire and the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pgimgsearch.database.connection import Connection
from pgimgsearch.models.backends.palette import COLOURS
from tests.server.conftest import Serving


@pytest.fixture
def swatches(tmp_path: Path, ingest: Callable[..., Any]) -> Path:
    """One plain picture for each colour, in the database."""
    folder = tmp_path / "swatches"
    folder.mkdir()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (64, 64), rgb).save(folder / f"{name}.png")
    ingest(folder)
    return folder


def test_words_never_seen_before_are_found_and_cached(
    swatches: Path, connected: Serving, connection: Connection
) -> None:
    assert connection.execute("select path from imgsearch.search_text('deep navy', 1)").fetchone() == ("navy.png",)
    connected.stop()  # writes what it has to keep
    assert connection.execute("select query from imgsearch.text_embedding").fetchall() == [("deep navy",)]
    assert connection.execute("select path from imgsearch.search_text(' deep navy', 1)").fetchone() == ("navy.png",)
