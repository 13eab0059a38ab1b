"""A real dual encoder behind the embedder: captions that were never seen before find their photos in one SELECT."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgimgsearch.database.connection import Connection
from tests.server.conftest import PASSWORD, Serving

pytestmark = pytest.mark.slow


def test_captions_find_their_photos_in_one_select(
    data: Path, tmp_path: Path, cli: Callable[..., Any], serve: Callable[..., Serving], connection: Connection
) -> None:
    with (data / "flickr" / "captions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "unseen"]
    model = f"open_clip:{data / 'weights' / 'openclip-mbv2-tiny'}"
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(data / "flickr" / name) for name in sorted({row["path"] for row in rows})))
    done = cli("ingest", "--list", str(listed), "--collection", "flickr", "--model", model)
    assert done.returncode == 0, done.stderr
    connection.execute("select imgsearch.connect_embedder('127.0.0.1', %s, %s)", [serve().port, PASSWORD])
    assert connection.execute("select count(*) from imgsearch.text_embedding").fetchone() == (0,)
    ranks = []
    for row in rows:
        found = connection.execute("select path from imgsearch.search_text(%s, k => 10)", [row["caption"]]).fetchall()
        names = [Path(one[0]).name for one in found]
        ranks.append(names.index(Path(row["path"]).name) if Path(row["path"]).name in names else 99)
    print(
        f"R@1 {np.mean(np.array(ranks) == 0):.3f}, R@10 {np.mean(np.array(ranks) < 10):.3f} over {len(ranks)} captions"
    )
    assert np.mean(np.array(ranks) == 0) == pytest.approx(0.206, abs=0.01)
    assert np.mean(np.array(ranks) < 10) == pytest.approx(0.638, abs=0.01)
