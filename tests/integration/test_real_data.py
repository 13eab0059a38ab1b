"""Real photos and real small weights through the normal way; skipped where they are absent."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.texts import cache_texts, missing_texts
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.ingest import run
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.limits import ImageLimits
from tests.conftest import Evaluate, values

pytestmark = pytest.mark.slow

TINY = "open_clip:openclip-mbv2-tiny"
P_AT_K = """
with answers as (
    select split_part(i.path, '/', 1) = split_part(s.path, '/', 1) as same,
           row_number() over (partition by i.image_id order by s.similarity desc) as rank
    from imgsearch.image i, imgsearch.similar(i.image_id, k => 5) s)
select avg(same::int) filter (where rank = 1)::float, avg(same::int)::float from answers
"""


def test_clothing_reaches_the_reference_precision(cli: Callable[..., Any], data: Path, connection: Connection) -> None:
    weights = data / "weights" / "mobilenetv2_100_backbone_timm.safetensors"
    arguments = ["--json", "ingest", str(data / "clothing"), "--model", "timm:mobilenetv2_100"]
    assert json.loads(cli(*arguments, "--weights", str(weights)).stdout)[0]["embedded"] == 800
    assert json.loads(cli(*arguments).stdout)[0]["unchanged"] == 800
    first, five = connection.execute(P_AT_K).fetchone() or (0, 0)
    assert first == pytest.approx(0.713, abs=0.01)
    assert five == pytest.approx(0.640, abs=0.01)
    judged = json.loads(
        cli("--json", "evaluate", "-p", "classes", "-m", "timm:mobilenetv2_100", "--key", "folder").stdout
    )
    figures = {name: figure["value"] for name, figure in judged["models"][0]["figures"].items()}
    assert (figures["p@1"], figures["p@5"]) == pytest.approx((first, five), abs=1e-9)


def test_titles_and_article_types_find_their_products(url: str, data: Path, judge: Evaluate, tmp_path: Path) -> None:
    """The first 500 unseen products: R@1 and R@10 of titles, P@5 of article types, as computed without a database."""
    with (data / "fashion" / "products.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "unseen"][:500]
    ask = searcher(url, data, data / "fashion", {row["path"] for row in rows})
    captions = {row["path"]: row["caption"] for row in rows}
    hits: Counter[int] = Counter()
    for text, number in Counter(captions.values()).items():
        found = [captions[path] for path in ask(text, 10)]
        hits[1] += number * (found[0] == text)
        hits[10] += number * (text in found)
    assert hits[1] / 500 == pytest.approx(0.388, abs=0.01)
    assert hits[10] / 500 == pytest.approx(0.912, abs=0.01)
    types = {row["path"]: row["article_type"] for row in rows}
    common = [kind for kind, number in Counter(types.values()).items() if number >= 5]
    assert len(common) == 26
    right = sum(types[path] == kind for kind in common for path in ask(kind, 5))
    assert right / (5 * 26) == pytest.approx(0.938, abs=0.01)
    titles = judge("text-to-image", TINY, data=data / "fashion", captions=data / "fashion" / "products.csv",
                   split="unseen", limit=500)  # fmt: skip
    assert values(titles)[TINY]["r@1"] == pytest.approx(hits[1] / 500)
    assert values(titles)[TINY]["r@10"] == pytest.approx(hits[10] / 500)
    listed = tmp_path / "unseen.csv"
    with listed.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(row | {"path": str(data / "fashion" / row["path"])} for row in rows)
    found = judge("text-to-image", TINY, data=listed, key="article_type", min_images=5)
    assert values(found)[TINY]["p@5"] == pytest.approx(right / (5 * 26))
    assert found.results[0].outcome.questions == 26
    with connect(url) as connection:  # what was there was not embedded again
        assert connection.execute("select sum((counts -> %s -> 'embedded')::int) from imgsearch.ingest_run",
                                  [TINY]).fetchone() == (500,)  # fmt: skip


def test_captions_find_their_photos(url: str, data: Path, judge: Evaluate) -> None:
    """A hundred unseen photos by five captions each: R@1 and R@10 as computed without a database."""
    with (data / "flickr" / "captions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "unseen"]
    assert len(rows) == 500
    ask = searcher(url, data, data / "flickr", {row["path"] for row in rows})
    found = [(row["path"], ask(row["caption"], 10)) for row in rows]
    assert sum(paths[0] == path for path, paths in found) / 500 == pytest.approx(0.206, abs=0.01)
    assert sum(path in paths for path, paths in found) / 500 == pytest.approx(0.638, abs=0.01)
    judged = values(judge("text-to-image", TINY, data=data / "flickr", split="unseen"))[TINY]
    assert judged["r@1"] == pytest.approx(sum(paths[0] == path for path, paths in found) / 500)
    assert judged["r@10"] == pytest.approx(sum(path in paths for path, paths in found) / 500)


def searcher(url: str, data: Path, folder: Path, paths: set[str]) -> Callable[[str, int], list[str]]:
    """Ingest some files with the real dual encoder; gives a search by text that answers with paths."""
    with connect(url) as connection:
        model = open_model(connection, f"open_clip:{data}/weights/openclip-mbv2-tiny")
    assert model.stored.name == TINY

    def only_those(files: Any) -> Any:
        return (file for file in files if file.path in paths)

    run.ingest(url, folder_source(folder), [model], run.Options(workers=2), refine=only_those)

    def ask(text: str, k: int) -> list[str]:
        with connect(url) as connection:
            if missing_texts(connection, model.stored, [text]):
                cache_texts(connection, model.stored, [text], model.embed_texts([text]))
            rows = connection.execute("select path from imgsearch.search_text(%s, %s)", [text, k]).fetchall()
        return [row[0] for row in rows]

    return ask


def test_every_odd_file_is_embedded_upright_or_recorded(
    data: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    report = ingest(data / "odd", "palette", "pdq", limits=ImageLimits(max_pixels=50_000_000))
    with (data / "odd" / "manifest.csv").open() as file:
        listed = list(csv.DictReader(file))
    not_read = (".eps", ".ico", ".icns")  # programs, and what holds other images
    manifest = {row["name"]: row for row in listed if not row["name"].endswith(not_read)}
    assert report.left_out[0].startswith(f"{len(listed) - len(manifest) + 1} files are not images")  # with the manifest
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
    assert report.counts["palette"] == {"scanned": len(manifest), "embedded": len(stored) - report.counts["palette"]["reused"],
                                        "reused": report.counts["palette"]["reused"], "unchanged": 0, "skipped": 0, "failed": len(failed)}  # fmt: skip
    for name, row in manifest.items():
        if row["pillow_status"] == "ok":
            assert name in stored, (name, failed.get(name))
            width, height = map(int, row["size"].split("x"))
            transform = row["exif_orientation"] in {"5", "6", "7", "8"} and row["pillow_format"] != "TIFF"
            assert stored[name] == ((height, width) if transform else (width, height)), name


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
