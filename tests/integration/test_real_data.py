"""Real photos and real small weights through the normal way; skipped where they are absent."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.pipeline import register, run, scan

P_AT_K = """
with answers as (
    select split_part(i.path, '/', 1) = split_part(s.path, '/', 1) as same,
           row_number() over (partition by i.image_id order by s.similarity desc) as rank
    from imgsearch.image i, imgsearch.similar(i.image_id, k => 5) s)
select avg(same::int) filter (where rank = 1)::float, avg(same::int)::float from answers
"""


@pytest.mark.slow
def test_clothing_reaches_the_reference_precision(cli: Callable[..., Any], data: Path, connection: Connection) -> None:
    weights = data / "weights" / "mobilenetv2_100_backbone_timm.safetensors"
    arguments = ["--json", "ingest", str(data / "clothing"), "--model", "timm:mobilenetv2_100"]
    assert json.loads(cli(*arguments, "--weights", str(weights)).stdout)[0]["embedded"] == 800
    assert json.loads(cli(*arguments).stdout)[0]["unchanged"] == 800
    first, five = connection.execute(P_AT_K).fetchone() or (0, 0)
    assert first == pytest.approx(0.713, abs=0.01)
    assert five == pytest.approx(0.640, abs=0.01)


@pytest.mark.slow
def test_titles_find_their_products(url: str, data: Path, ingest: Callable[..., Any]) -> None:
    """The first 500 unseen titles, with a real dual encoder: R@1 and R@10 as computed without a database."""
    with (data / "fashion" / "products.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "unseen"][:500]
    paths = {row["path"] for row in rows}
    source = scan.folder_source(data / "fashion")

    def only_those(files: Any) -> Any:
        return (file for file in files if file.path in paths)

    with connect(url) as connection:
        model = register.open_model(connection, f"open_clip:{data}/weights/openclip-mbv2-tiny")
        assert model.stored.name == "open_clip:openclip-mbv2-tiny"
        run.ingest(url, source, [model], run.Options(workers=2), refine=only_those)
        texts = list(dict.fromkeys(row["caption"] for row in rows))
        register.store.cache_texts(connection, model.stored, texts, model.encoder.embed_text(texts))
        captions = {row["path"]: row["caption"] for row in rows}
        hits = Counter()
        for text in texts:
            found = [
                captions[row[0]] for row in connection.execute("select path from imgsearch.search_text(%s, 10)", [text])
            ]
            number = sum(row["caption"] == text for row in rows)
            hits[1] += number * (found[0] == text)
            hits[10] += number * (text in found)
    assert hits[1] / 500 == pytest.approx(0.388, abs=0.01)
    assert hits[10] / 500 == pytest.approx(0.912, abs=0.01)


def test_every_odd_file_is_embedded_upright_or_recorded(
    data: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    report = ingest(data / "odd", "palette", "pdq", max_pixels=50_000_000)
    with (data / "odd" / "manifest.csv").open() as file:
        manifest = {row["name"]: row for row in csv.DictReader(file)}
    stored = {
        row[0]: row[1:]
        for row in connection.execute(
            "select path, width, height from imgsearch.image join imgsearch.content using (content_id)"
        )
    }
    failed = {
        row[0]: row[1:]
        for row in connection.execute(
            "select path, error_class, message from imgsearch.ingest_failure where kind = 'failed'"
        )
    }
    assert stored.keys() | failed.keys() == manifest.keys()
    assert not stored.keys() & failed.keys()
    assert all(kind and message for kind, message in failed.values())
    assert report.counts["palette"] == {"scanned": 222, "embedded": len(stored) - report.counts["palette"]["reused"],
                                        "reused": report.counts["palette"]["reused"], "unchanged": 0, "skipped": 0, "failed": len(failed)}  # fmt: skip
    for name, row in manifest.items():
        if row["pillow_status"] == "ok":
            assert name in stored, (name, failed.get(name))
            width, height = map(int, row["size"].split("x"))
            turned = row["exif_orientation"] in {"5", "6", "7", "8"} and row["pillow_format"] != "TIFF"
            assert stored[name] == ((height, width) if turned else (width, height)), name


def test_all_orientations_of_a_photo_are_one_picture(
    data: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    ingest(data / "odd", "pdq")
    for kind in ("Landscape", "Portrait"):
        rows = connection.execute(
            "select s.path, s.similarity from imgsearch.similar((select image_id from imgsearch.image where path = %s), k => 12) s",
            [f"exif-orientation-examples__{kind}_1.jpg"],
        ).fetchall()
        upright = {row[0] for row in rows if row[1] > 1 - 31 / 256 and kind in row[0]}
        assert upright == {f"exif-orientation-examples__{kind}_{n}.jpg" for n in (0, 2, 3, 4, 5, 6, 7, 8)}


def test_identical_products_are_found(data: Path, ingest: Callable[..., Any], connection: Connection) -> None:
    ingest(data / "fashion", "pdq")
    assert connection.execute("select count(*) from imgsearch.duplicates() where kind = 'identical'").fetchone() == (
        45,
    )
