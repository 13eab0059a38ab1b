"""Text in SQL: cached vectors, a bounded cache, and errors that say what to run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.texts import cache_texts, missing_texts
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.models.backends.palette import COLOURS


@pytest.fixture
def swatches(tmp_path: Path, ingest: Callable[..., Any]) -> Path:
    """One plain image for each colour."""
    folder = tmp_path / "swatches"
    folder.mkdir()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (64, 64), rgb).save(folder / f"{name}.png")
    ingest(folder)
    return folder


def test_a_cached_text_finds_its_pictures_in_plain_sql(
    swatches: Path, cli: Callable[..., Any], connection: Connection
) -> None:
    with pytest.raises(psycopg.Error) as raised:
        connection.execute("select * from imgsearch.search_text('navy')")
    assert raised.value.sqlstate == "PI007"
    assert "pgimgsearch embed-text --model 'palette' 'navy'" in str(raised.value.diag.message_hint)
    with pytest.raises(psycopg.Error) as raised:
        connection.execute("select * from imgsearch.search_text('- women''s navy')")
    assert "-- '- women'\\''s navy'" in str(raised.value.diag.message_hint), "as a shell takes it"
    assert '"embedded": 2' in cli("--json", "embed-text", "navy", "light of gold").stdout
    assert connection.execute("select path from imgsearch.search_text('navy', 1)").fetchone() == ("navy.png",)
    assert connection.execute("select path from imgsearch.search_text('  navy ', 1)").fetchone() == ("navy.png",)
    assert connection.execute(
        "select path from imgsearch.similar_to(imgsearch.text_vector('light of gold'), 1)"
    ).fetchone() == ("gold.png",)
    assert '"embedded": 0' in cli("--json", "embed-text", "navy").stdout


def test_search_from_the_shell_fills_the_cache(swatches: Path, cli: Callable[..., Any], connection: Connection) -> None:
    done = cli("--json", "search", "--text", "teal", "-k", "1")
    assert '"path": "teal.png"' in done.stdout
    assert connection.execute("select path from imgsearch.search_text('teal', 1)").fetchone() == ("teal.png",)
    by_picture = cli("--json", "search", str(swatches / "rose.png"), "-k", "1")
    assert '"path": "rose.png"' in by_picture.stdout


def test_the_least_recently_used_texts_leave(swatches: Path, connection: Connection, url: str) -> None:
    with connect(url) as opened:
        loaded = open_model(opened, "palette")
        names = list(COLOURS)[:6]
        cache_texts(opened, loaded.stored, names, loaded.encoder.embed_text(names))
        assert missing_texts(opened, loaded.stored, [names[0]]) == []  # used just now
        opened.execute("set imgsearch.text_cache_limit = 3")
        cache_texts(opened, loaded.stored, ["red"], loaded.encoder.embed_text(["red"]))
        left = {row[0] for row in opened.execute("select query from imgsearch.text_embedding").fetchall()}
    assert left == {"red", names[0], names[5]}


def test_a_wrong_dimension_is_refused(swatches: Path, connection: Connection) -> None:
    with pytest.raises(psycopg.Error) as raised:
        connection.execute("select imgsearch.cache_text('x', '[1,2]'::vector)")
    assert raised.value.sqlstate == "PI002"


def test_search_text_equals_numpy(swatches: Path, connection: Connection, url: str) -> None:
    with connect(url) as opened:
        loaded = open_model(opened, "palette")
        query = loaded.encoder.embed_text(["pink and green"])
        cache_texts(opened, loaded.stored, ["pink and green"], query)
    rows = connection.execute(
        "select image_id, embedding::vector::real[] from imgsearch.images_palette order by 1"
    ).fetchall()
    exact = np.float32([row[1] for row in rows]) @ query[0]
    found = connection.execute(
        "select image_id, similarity from imgsearch.search_text('pink and green', 32, exact => true)"
    ).fetchall()
    assert [row[1] for row in found] == pytest.approx(sorted(exact, reverse=True), abs=1e-3)
