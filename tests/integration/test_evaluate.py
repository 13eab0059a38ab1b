"""``evaluate`` over real files and Postgres: the figures are those of an independent script, and odd truths are named."""

import csv
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from psycopg.types.json import Jsonb

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import get_model
from pgimgsearch.errors import InterruptedRun, ModelError, PgImgSearchError, SourceError, UsageError
from pgimgsearch.evaluation.context import EvaluationRequest
from pgimgsearch.evaluation.images import holds
from pgimgsearch.evaluation.protocols import BY_NAME, FIGURES, PROTOCOLS
from pgimgsearch.evaluation.run import evaluate, summary
from pgimgsearch.indexing.build import BuildOptions, build_index
from pgimgsearch.ingest import run
from pgimgsearch.reporter import Reporter
from pgimgsearch.sources import sidecar
from tests.conftest import Evaluate, judge_at, values
from tests.support import copy_set, independent_metrics
from tests.support.builders import add_images, add_model, add_vectors
from tests.support.images import photo

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """24 drawn images in three folders, each twice: as it is and smaller."""
    folder = tmp_path / "drawn"
    for number, seed in enumerate((3, 4, 5, 6, 8, 10, 13, 14, 15, 16, 18, 20)):
        path = photo(folder / "abc"[number % 3] / f"{number:02}.png", seed=seed, size=(96, 96))
        Image.open(path).resize((48, 48)).save(path.with_name(f"{number:02}-small.png"))
    return folder


@pytest.fixture
def disc(tmp_path: Path, drawn: Path) -> Path:
    """A small set in DISC21's layout, of drawn images."""
    folder = tmp_path / "disc"
    copy_set.make(folder, sorted(drawn.rglob("*.png")), references=12, matched=5, unmatched=6, background=6, seed=1)
    return folder


def test_copy_detection_on_real_photos_for_three_models(
    cli: Callable[..., Any], data: Path, tmp_path: Path, connection: Connection
) -> None:
    folder = tmp_path / "disc21"
    files = sorted((data / "flickr").rglob("*.jpg"))
    copy_set.make(folder, files, references=60, matched=25, unmatched=25, background=40, seed=6)
    weights = str(data / "weights" / "mobilenetv2_100_backbone_timm.safetensors")
    assert cli("models", "add", "timm:mobilenetv2_100", "--weights", weights, "--as", "mobilenet").returncode == 0
    command = ["--json", "evaluate", str(folder), "--protocol", "copy-detection", "-m", "mobilenet", "-m", "pdq",
               "-m", "palette"]  # fmt: skip
    page = tmp_path / "page.html"
    whole = json.loads(cli(*command, "--html", str(page)).stdout)
    assert [model["questions"] for model in whole["models"]] == [50] * 3
    for model in whole["models"]:
        bits = model["model"] == "pdq"
        known = independent_metrics.vectors(connection, model["model"], "disc21")
        expected, predictions = independent_metrics.copy_detection(known, folder, bits=bits)
        assert {name: figure["value"] for name, figure in model["figures"].items()} == pytest.approx(expected, abs=1e-6)
        assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in model["figures"].values())
        if model["model"] == "palette":
            continue
        with (tmp_path / "predictions.csv").open("w", newline="") as file:
            csv.writer(file).writerows(predictions)
        judged = json.loads(cli("--json", "evaluate", "-p", "copy-detection", "--predictions", file.name,
                                "--truth", str(folder / "ground_truth.csv")).stdout)  # fmt: skip
        again = {name: figure["value"] for name, figure in judged["models"][0]["figures"].items()}
        assert again == pytest.approx(expected, abs=1e-6)
    best, worst = whole["models"][0]["figures"], whole["models"][2]["figures"]
    assert (
        worst["r@1"]["difference"][0] <= worst["r@1"]["value"] - best["r@1"]["value"] <= worst["r@1"]["difference"][1]
    )

    normalised = json.loads(cli(*command, "--score-norm", "2").stdout)["models"]
    for plain, other in zip(whole["models"], normalised, strict=True):
        assert plain["figures"]["r@1"]["value"] == other["figures"]["r@1"]["value"]  # it moves whole queries
        assert plain["figures"]["micro-ap"]["value"] != other["figures"]["micro-ap"]["value"]
    assert "cannot be whitened" in cli(*command, "--whiten", "16").stderr
    whitened = json.loads(cli(*command[:-4], "--whiten", "16").stdout)["models"][0]["figures"]
    assert whitened["r@1"]["value"] != best["r@1"]["value"]
    _check_page(page, tmp_path)


def _check_page(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "<svg" in text
    assert {"question", "right", "wrong", "missed"} == set(re.findall(r'<figure class="(\w+)"', text))
    if BROWSER is None:
        return
    shot = tmp_path / "shot.png"
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,1400", f"--screenshot={shot}"]
    subprocess.run([BROWSER, *arguments, page.as_uri()], check=True, capture_output=True, timeout=60)
    colours = Image.open(shot).convert("RGB").getcolors(1 << 24) or []
    assert len(colours) > 1000  # photos, not an empty page


def test_what_a_truth_names_in_vain_is_counted_and_named(judge: Evaluate, disc: Path) -> None:
    judge("copy-detection", "palette", data=disc)
    truth = disc / "ground_truth.csv"
    rows = list(csv.reader(truth.read_text().splitlines()))[1:]
    matched = [row for row in rows if row[1]]
    shutil.copy(disc / "references" / f"{matched[1][1]}.jpg", disc / "queries" / f"{matched[1][0]}.jpg")
    (disc / "queries" / "Q99998.jpg").write_bytes(b"no image")
    extra = [["Q77777", "R000001"], [matched[0][0], "R888888"], matched[2], [matched[2][0], ""], ["Q99998", "R000002"]]
    (disc / "ground_truth.csv").write_text("\n".join(",".join(row) for row in rows[:-1] + extra))
    found = judge("copy-detection", "palette", data=disc)
    noted = {row["what"]: (row["count"], row["named"]) for row in found.notes.rows()}
    assert noted["files cannot be read as images"] == (1, [str(disc / "queries" / "Q99998.jpg")])
    assert noted["rows of the truth are repeated"] == (1, [",".join(matched[2])])
    assert noted["queries have a match and none in the truth; the match counts"] == (1, [matched[2][0]])
    assert noted["queries of the truth are not there"] == (1, ["Q77777"])
    assert noted["references of the truth are not there, or cannot be read; their queries are left out"] == (
        1,
        ["R888888"],
    )
    unnamed = "queries are not in the truth, which names those without a match too, and are left out"
    assert noted[unnamed] == (1, [f"{rows[-1][0]}.jpg"])
    equal = noted["queries equal their reference, pixel by pixel: any model finds them"]
    assert equal == (1, [f"queries/{matched[1][0]}.jpg"])
    assert found.results[0].outcome.questions == len(rows) - 2  # less that, and the one whose reference is lost
    (disc / "ground_truth.csv").write_text("\n".join(",".join(row) for row in matched[3:]))
    again = judge("copy-detection", "palette", data=disc)
    noted = {row["what"]: row["count"] for row in again.notes.rows()}
    assert noted["queries are not in the truth and count as without a match"] == len(rows) - len(matched[3:])
    assert again.results[0].outcome.questions == len(rows)


def test_files_are_judged_as_they_are_now(judge: Evaluate, drawn: Path, tmp_path: Path) -> None:
    """One that is gone is named, though its vector is there; one that came back is an image again."""
    paths = sorted(drawn.rglob("*.png"))
    listed = tmp_path / "list.csv"
    listed.write_text("path\n" + "\n".join(map(str, paths[:-1])))
    key = r"/([abc])/[^/]*$"  # whatever the folders above are called
    assert judge("classes", "palette", data=listed, key=key).results[0].outcome.questions == 23
    paths[3].rename(tmp_path / "away.png")
    for more in ([], paths[-1:]):  # with nothing to embed, and with something
        listed.write_text("path\n" + "\n".join(map(str, paths[:-1] + more)))
        found = judge("classes", "palette", data=listed, key=key)
        assert found.notes.told() == [f"files cannot be read as images: 1 ({paths[3]})"]
        assert found.results[0].outcome.questions == 22 + len(more)
    (tmp_path / "away.png").rename(paths[3])
    found = judge("classes", "palette", data=listed, key=key)
    assert found.notes.told() == []
    assert found.results[0].outcome.questions == 24


def test_one_query_by_two_names_has_the_references_of_both(judge: Evaluate, disc: Path) -> None:
    rows = list(csv.reader((disc / "ground_truth.csv").read_text().splitlines()))[1:]
    matched = [row for row in rows if row[1]]
    lines = [",".join(row) for row in rows]
    plain = disc / "plain.csv"
    plain.write_text("\n".join(lines))
    before = values(judge("copy-detection", "palette", data=disc, truth=plain))
    plain.write_text("\n".join([*lines, f"{matched[0][0]}.jpg,"]))
    found = judge("copy-detection", "palette", data=disc, truth=plain)
    assert values(found) == before
    assert "queries are named twice in the truth, in different words: 1" in " ".join(found.notes.told())


def test_limits_on_references_make_queries_without_a_match(judge: Evaluate, disc: Path) -> None:
    found = judge("copy-detection", "palette", data=disc, limit_references=6)
    noted = {row["what"]: row["count"] for row in found.notes.rows()}
    rows = list(csv.reader((disc / "ground_truth.csv").read_text().splitlines()))[1:]
    beyond = sum(row[1] >= "R000006" for row in rows)
    assert 0 < beyond < 5
    assert noted["queries have their reference beyond the limit and count as without a match"] == beyond
    assert found.results[0].outcome.questions == 11
    assert sum(found.results[0].outcome.measures["r@1"](w) >= 0 for w in _each_alone(11)) == 5 - beyond


def _each_alone(count: int) -> list[Any]:
    return list(np.eye(count))


def test_sets_on_which_a_figure_means_nothing_are_refused(judge: Evaluate, disc: Path, tmp_path: Path) -> None:
    none = tmp_path / "none.csv"
    none.write_text("query_id,reference_id\nQ00001,\n")
    with pytest.raises(SourceError, match="no query has a match"):
        judge("copy-detection", "palette", data=disc, truth=none)
    with pytest.raises(SourceError, match="every query is a reference"):
        same = tmp_path / "same.csv"
        same.write_text("R000001,R000001\nR000002,R000002\n")
        judge("copy-detection", "palette", data=disc, queries=disc / "references", truth=same)
    with pytest.raises(SourceError, match="references: there is none"):
        judge("copy-detection", "palette", data=tmp_path / "drawn")
    for file in sorted((disc / "train").iterdir())[1:]:
        file.write_bytes(b"no image")
    with pytest.raises(SourceError, match="there are 1 images to normalise on"):
        judge("copy-detection", "palette", data=disc, score_norm=2)
    with pytest.raises(SourceError, match="images to normalise on: there is none"):
        shutil.rmtree(disc / "train")
        judge("copy-detection", "palette", data=disc, score_norm=2)
    with pytest.raises(SourceError, match="there is no"):
        judge("copy-detection", "palette", data=disc, references=disc / "nowhere")
    none.write_text("Q00001;R000001\n")
    with pytest.raises(SourceError, match=r"none of the 1 queries of .* is there, such as Q00001;R000001"):
        judge("copy-detection", "palette", data=disc, truth=none)
    none.write_text("\n")
    with pytest.raises(SourceError, match="has no rows"):
        judge("copy-detection", "palette", data=disc, truth=none)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="there are no images in"):
        judge("classes", "palette", data=tmp_path / "empty")
    with pytest.raises(SourceError, match="is one image"):
        judge("classes", "palette", data=disc / "references" / "R000001.jpg")


def test_instances_and_classes_are_those_of_the_script(judge: Evaluate, drawn: Path, connection: Connection) -> None:
    instances = judge("instances", "palette", "pdq", data=drawn, key=r"(\d+)(?:-small)?\.png")
    classes = judge("classes", "palette", "pdq", data=drawn)
    for model in ("palette", "pdq"):
        known = independent_metrics.vectors(connection, model, "drawn")
        bits = model == "pdq"
        paths = [row[0] for row in connection.execute("select path from imgsearch.image order by image_id")]
        things = independent_metrics.same_label(known, {p: re.search(r"\d+", p)[0] for p in paths}, bits=bits)  # type: ignore[index]
        kinds = independent_metrics.same_label(
            known, {path: independent_metrics.label_of(path) for path in paths}, bits=bits
        )
        assert values(instances)[model] == pytest.approx(
            {n: things[n] for n in ("map", "r@1", "r@5", "r@10")}, abs=1e-6
        )
        assert values(classes)[model] == pytest.approx({n: kinds[n] for n in ("p@1", "p@5", "p@10", "knn")}, abs=1e-6)


def test_known_pairs_are_judged_at_the_models_threshold(
    judge: Evaluate, drawn: Path, connection: Connection, tmp_path: Path
) -> None:
    truth = tmp_path / "pairs.csv"
    paths = sorted(str(path.relative_to(drawn)) for path in drawn.rglob("*.png"))
    truth.write_text("path,group\n" + "".join(f"{path},{re.search(r'[0-9]+', path)[0]}\n" for path in paths))  # type: ignore[index]
    found = judge("duplicates", "pdq", data=drawn, truth=truth)
    true = {frozenset((p, p.replace(".png", "-small.png"))) for p in paths if "-small" not in p}
    known = independent_metrics.vectors(connection, "pdq", "drawn")
    near = connection.execute("select near from imgsearch.model where name = 'pdq'").fetchone()
    assert near is not None
    assert values(found)["pdq"] == pytest.approx(
        independent_metrics.pairs_found(known, true, near[0], bits=True), abs=1e-6
    )
    shutil.copy(drawn / paths[0], drawn / "copy.png")
    truth.write_text(f"{paths[0]},copy.png\n{paths[0]},{paths[1]}\n{paths[1]},{paths[0]}\n{paths[0]},gone.png\n")
    found = judge("duplicates", "pdq", data=drawn, truth=truth)
    assert values(found)["pdq"]["recall"] == 1
    noted = {row["what"]: (row["count"], row["named"]) for row in found.notes.rows()}
    assert noted["images of the truth are not there; their pairs are left out"] == (1, ["gone.png"])
    assert noted["known pairs have the same bytes, so no model is needed, and do not count"] == (
        1,
        [str(drawn / paths[0])],
    )
    assert noted["pairs are given twice"] == (1, [f"{paths[1]} and {paths[0]}"])


def test_the_index_is_judged_by_distance(judge: Evaluate, connection: Connection, url: str) -> None:
    """A graph of few edges, which misses many, against an exact search by NumPy; both ask every vector."""
    add_model(connection, "sparse", 24)
    connection.execute("select imgsearch.set_index('sparse', m => 6, ef_construction => 12)")
    add_images(connection, 1500)
    rows = np.random.default_rng(1).normal(size=(1500, 24)).astype(np.float16)
    add_vectors(connection, "embedding_sparse_24", rows)
    with pytest.raises(ModelError, match="sparse has no index"):
        judge("index", "sparse")
    with connect(url) as opened:
        build_index(opened, get_model(opened, "sparse"), BuildOptions(64))
        opened.execute("update imgsearch.model set ef_search = 10")
    # so few rows may as well be read whole and sorted, says the planner from one sample of them and not from another
    through_index = "-c%20enable_seqscan%3Doff%20-c%20enable_sort%3Doff"
    found = judge_at(f"{url}&options={through_index}", "index", "sparse", k=9, sample=1500)
    unit = rows.astype(float) / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)
    connection.execute("select '[1]'::vector")
    connection.execute("set hnsw.ef_search = 10")
    connection.execute("set enable_seqscan = off")
    connection.execute("set enable_sort = off")
    recalls = []
    for number, row in enumerate(unit):
        answers = connection.execute(
            "select content_id from imgsearch.embedding_sparse_24 order by embedding <=> %s::vector::halfvec limit 10",
            [str(rows[number].astype(float).tolist())],
        ).fetchall()
        distances = 1 - unit @ row
        farthest = np.sort(np.delete(distances, number))[8] + 1e-3
        recalls.append(min(9, sum(distances[i - 1] <= farthest for (i,) in answers if i != number + 1)) / 9)
    assert 0.5 < values(found)["sparse"]["recall@9"] < 1
    assert values(found)["sparse"]["recall@9"] == pytest.approx(np.mean(recalls), abs=2e-3)
    with pytest.raises(UsageError, match="no 1500 neighbours"):
        judge("index", "sparse", k=1500)


def test_a_list_is_believed_as_it_is_now(judge: Evaluate, drawn: Path, tmp_path: Path) -> None:
    """The truth of the second run, not that of the day on which the images were embedded."""
    listed, paths = tmp_path / "list.csv", sorted(drawn.rglob("*.png"))
    for key, at in (("kind", 0), ("kind", 1), ("other", 0)):
        rows = "".join(f"{path},{path.parent.name if at == 0 else path.stem[:2]}\n" for path in paths)
        listed.write_text(f"path,{key}\n{rows}")
        found = judge("classes", "palette", data=listed, key=key)
        by_path = judge("classes", "palette", data=drawn, key="folder" if at == 0 else r"(\d\d)")
        assert values(found) == values(by_path)
    with pytest.raises(SourceError, match="all images have the same class"):
        judge("classes", "palette", data=listed, key="other", filter={"other": "a"})


def test_files_are_found_from_anywhere_and_by_any_name(
    cli: Callable[..., Any], disc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative options, and a name that is no UTF-8."""
    query = sorted((disc / "queries").iterdir())[0]
    os.rename(query, os.fsencode(query.parent) + b"/odd-\xff.jpg")  # noqa: PTH104
    command = [
        "--json",
        "evaluate",
        str(disc),
        "-p",
        "copy-detection",
        "-m",
        "palette",
        "--html",
        str(disc / "page.html"),
    ]
    plain = cli(*command)
    assert plain.returncode == 0, plain.stderr
    monkeypatch.chdir(disc.parent)
    named = cli(
        *command, "--references", "disc/references", "--queries", "disc/queries", "--truth", "disc/ground_truth.csv"
    )
    assert json.loads(named.stdout)["models"][0]["figures"] == json.loads(plain.stdout)["models"][0]["figures"]
    told = {row["what"]: row["named"] for row in json.loads(plain.stdout)["notes"]}
    assert told["queries of the truth are not there"] == [query.stem]
    unnamed = "queries are not in the truth, which names those without a match too, and are left out"
    assert told[unnamed] == ["odd-\\xff.jpg"]
    for wrong in (["--html", str(disc / "nowhere" / "page.html")], ["--truth", "nowhere.csv"]):
        assert cli(*command, *wrong).returncode != 0


def test_an_interrupted_embedding_evaluates_nothing(
    judge: Evaluate, photos: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.ingest

    def interrupted(*arguments: Any, **options: Any) -> run.Report:
        return replace(whole(*arguments, **options), status="interrupted")

    monkeypatch.setattr(run, "ingest", interrupted)
    with pytest.raises(InterruptedRun, match="the next run goes on"):
        judge("classes", "palette", data=photos)
    assert connection.execute("select count(*) from imgsearch.evaluation_run").fetchone() == (0,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON, max_size=3)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OBJECTS, OBJECTS)
def test_a_filter_holds_as_it_does_in_sql(admin: Connection, value: Any, wanted: Any) -> None:
    for asked in (wanted, {key: value[key] for key in list(value)[:1]}):
        row = admin.execute("select %s::jsonb @> %s::jsonb", [Jsonb(value), Jsonb(asked)]).fetchone()
        assert (holds(value, asked),) == row


def test_captions_of_a_list_are_told_beside_each_other_and_filtered_before_they_are_cut(
    judge: Evaluate, tmp_path: Path
) -> None:
    colours = ["green", "blue", "red", "yellow"]
    (tmp_path / "set").mkdir()
    for colour in colours:
        Image.new("RGB", (32, 32), colour).save(tmp_path / "set" / f"{colour}.png")
    rows = [f"{colour}.png,{word},{'warm' if colour in {'red', 'yellow'} else 'cold'}"
            for colour in colours for word in (colour, f"{colour} wall")]  # fmt: skip
    listed = tmp_path / "set" / "list.csv"
    listed.write_text("path,caption,tone\n" + "\n".join(rows))
    assert judge("text-to-image", "palette", data=listed).results[0].outcome.questions == 8
    found = judge("text-to-image", "palette", data=listed, captions=listed, filter={"tone": "warm"}, limit=2)
    assert found.results[0].outcome.questions == 4
    assert values(found)["palette"]["r@1"] == 1
    with pytest.raises(SourceError, match="no such images"):  # a list has a collection of its own, and no folder
        judge("text-to-image", "palette", data=tmp_path / "set", captions=listed, filter={"tone": "warm"}, limit=2)


@pytest.mark.parametrize("layout", ["file", "database"])
def test_captions_find_their_pictures_and_the_other_way_round(
    judge: Evaluate, photos: Path, ingest: Callable[..., Any], connection: Connection, layout: str, tmp_path: Path
) -> None:
    """Palette reads names of colours; two images share a caption, and both are right."""
    colours = ["red", "green", "blue", "yellow"]
    folder = tmp_path / "colours"
    folder.mkdir()
    for number, colour in enumerate([*colours, "red"]):
        Image.new("RGB", (32, 32), colour).resize((40 + number, 40)).save(folder / f"{number}.png")
    lines = [f"{number}.png,{colour}" for number, colour in enumerate([*colours, "red"])] + [
        "1.png,orange",
        "9.png,red",
    ]
    (folder / "captions.csv").write_text("path,caption\n" + "\n".join(lines))
    request: dict[str, Any] = {"data": folder}
    if layout == "database":
        captions = sidecar.Sidecar(folder / "captions.csv")
        ingest(folder, "palette", refine=lambda files: sidecar.with_captions(files, captions))
        request = {"collection": "colours"}
    found = judge("text-to-image", "palette", **request)
    assert values(found)["palette"] == {"r@1": 5 / 6, "r@5": 1, "r@10": 1}  # "orange" is told of a green image
    assert found.results[0].outcome.questions == 6
    back = judge("image-to-text", "palette", **request)
    assert values(back)["palette"]["r@1"] == 1
    assert back.results[0].outcome.questions == 5
    shutil.copy(folder / "0.png", folder / "6.png")  # the same bytes with another caption, and one without
    Image.new("RGB", (50, 50), "navy").save(folder / "7.png")
    (folder / "captions.csv").write_text("path,caption\n0.png,red\n2.png,blue\n6.png,crimson\n")
    if layout == "database":
        captions = sidecar.Sidecar(folder / "captions.csv")
        ingest(folder, "palette", refine=lambda files: sidecar.with_captions(files, captions))
    told = judge("text-to-image", "palette", **request)
    extra = 3 if layout == "database" else 0  # green, yellow and orange, which are kept, and red again
    assert told.results[0].outcome.questions == 3 + extra + (layout == "database")
    assert not any("not there" in line for line in told.notes.told())
    assert judge("image-to-text", "palette", sample=2, **request).results[0].outcome.questions == 2
    if layout == "file":
        assert found.notes.told() == ["images of the captions are not there: 1 (9.png)"]


def test_zero_shot_tells_classes_by_their_names(judge: Evaluate, tmp_path: Path) -> None:
    for number, (folder, colour) in enumerate([("red", "red"), ("blue", "blue"), ("blue", "red"), ("red", "#f00001")]):
        (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32 + number, 32), colour).save(tmp_path / "set" / folder / f"{number}.png")
    (tmp_path / "set" / "green").mkdir()
    found = judge("zero-shot", "palette", data=tmp_path / "set", template="{}")
    assert values(found)["palette"] == {"top-1": 0.75, "top-5": 1}
    Image.new("RGB", (32, 40), "blue").save(tmp_path / "set" / "beside.png")  # in no folder of the set
    again = judge("zero-shot", "palette", data=tmp_path / "set", template="{}")
    assert again.results[0].outcome.questions == 4
    with pytest.raises(SourceError, match="no group has 2 images"):
        judge("instances", "palette", data=tmp_path / "set", key=r"(\d)\.png", min_images=1)
    assert "classes are empty: 1 (green)" in found.notes.told()


def test_models_are_compared_on_the_same_pictures(
    judge: Evaluate, drawn: Path, ingest: Callable[..., Any], url: str, connection: Connection
) -> None:
    ingest(drawn, "palette", "pdq")
    with connect(url) as opened:
        opened.execute("delete from imgsearch.embedding_pdq_256 where content_id = 3")
    found = judge("classes", "palette", "pdq", collection="drawn", key="folder")
    assert [result.outcome.questions for result in found.results] == [23, 23]
    assert "images have no vector of pdq yet and are left out for all: 1" in found.notes.told()[0]
    with connect(url) as opened:
        opened.execute("delete from imgsearch.embedding_pdq_256 where content_id < 8")
    with pytest.raises(ModelError, match="pdq has no vectors of 7 of 24 images") as raised:
        judge("classes", "palette", "pdq", collection="drawn", key="folder")
    assert "pgimgsearch ingest" in str(raised.value.hint)


def test_what_a_model_skipped_it_misses(judge: Evaluate, drawn: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(drawn / "a" / "plain.png")
    Image.new("RGB", (65, 64), "white").save(drawn / "a" / "plain too.png")
    found = values(judge("instances", "pdq", "palette", data=drawn, key=r"(\d\d|plain)"))
    assert found["palette"]["r@1"] > found["pdq"]["r@1"]


@pytest.mark.parametrize(
    ("protocol", "asked", "match"),
    [
        ("classes", {}, "what is a class"),
        ("classes", {"key": "colour"}, "no image has the metadata key colour"),
        ("classes", {"key": r"(\.png)"}, "all images have the same class"),
        ("classes", {"key": r"(.*)"}, "no class has 2 images"),
        ("classes", {"key": "folder", "collection": "nowhere"}, "nowhere"),
        ("instances", {}, "no image has a group"),
        ("text-to-image", {}, "no image has a caption"),
        ("duplicates", {}, "which pairs are known"),
        ("copy-detection", {}, "needs a folder"),
        ("classes", {"key": "folder", "split": "test"}, "classes does not use --split"),
    ],
)
def test_bad_questions_are_refused(
    judge: Evaluate, photos: Path, ingest: Callable[..., Any], protocol: str, asked: dict[str, Any], match: str
) -> None:
    ingest(photos, "palette")
    with pytest.raises(PgImgSearchError, match=match) as raised:
        judge(protocol, "palette", **asked)
    assert raised.value.hint or protocol == "classes"


def test_a_model_without_text_is_refused_before_anything_is_embedded(
    judge: Evaluate, photos: Path, connection: Connection
) -> None:
    for model in ("pdq", "dinov2-small"):
        with pytest.raises(ModelError, match=f"model {model} cannot read text"):
            judge("zero-shot", "palette", model, data=photos)
    assert connection.execute("select count(*) from imgsearch.image").fetchone() == (0,)
    with pytest.raises(UsageError):
        judge("index", "palette", data=photos)


def test_evaluations_are_kept_and_compared_and_may_fail_a_build(cli: Callable[..., Any], photos: Path) -> None:
    command = ["evaluate", str(photos), "-p", "classes", "-m", "palette", "-m", "pdq"]
    first = cli(*command, "--require", "p@1>=0", "--require", "palette:knn<=1")
    assert first.returncode == 0, first.stderr
    assert "palette" in first.stdout
    assert "12 embedded" in first.stderr
    second = cli(*command, "--require", "p@1>1")
    assert second.returncode == 10
    assert "embedded" not in second.stderr
    assert "p@1 +0.0000" in second.stderr
    assert re.search(r"error: palette: p@1 is [\d.]+, not > 1; pdq: p@1 is", second.stderr)
    rows = json.loads(cli("--json", "evaluate", "--history").stdout)
    assert [(row["model"], row["protocol"], row["questions"]) for row in rows] == [
        ("pdq", "classes", 12), ("palette", "classes", 12)] * 2  # fmt: skip
    assert set(rows[0]["figures"]) == {"p@1", "p@5", "p@10", "knn"}
    assert cli(*command, "--require", "r@1>1").returncode == 2
    refused = cli("evaluate", "-p", "text-to-image", "-m", "palette", "--require", "p@1>1")
    assert "there is no figure p@1" in refused.stderr  # it is of classes: --key
    assert "has no {} for the text" in cli("evaluate", "-p", "zero-shot", "--template", "a photo").stderr
    assert [row["model"] for row in json.loads(cli("--json", "evaluate", "--history", "-m", "pdq").stdout)] == [
        "pdq"
    ] * 2
    assert "named twice" in cli(*command, "-m", "default").stderr  # palette by its alias
    missed = cli("evaluate", "-p", "classes", "--key", "folder", "-m", "default", "--require", "default:p@1>1")
    assert missed.returncode == 10
    assert "default: p@1 is" in missed.stderr
    assert "unknown protocol: (none)" in cli("evaluate").stderr


def test_a_reader_may_evaluate_what_is_there(
    judge: Evaluate, photos: Path, ingest: Callable[..., Any], url: str, admin: Connection, connection: Connection
) -> None:
    ingest(photos, "palette")
    admin.execute("drop role if exists looks")
    admin.execute("create role looks login")
    connection.execute("select imgsearch.grant_access('looks', 'reader')")
    told: list[str] = []
    found = evaluate(
        url.replace("pgimgsearch@", "looks@"), BY_NAME["classes"], EvaluationRequest(models=("palette",), key="folder"), device="cpu",
        trust=False, reporter=Reporter(told.append),
    )  # fmt: skip
    assert values(found) == values(judge("classes", "palette", key="folder"))
    assert "may not write" in told[0]
    assert found.results[0].evaluation_id is None


def test_every_protocol_names_its_source_in_the_help(cli: Callable[..., Any]) -> None:
    told = " ".join(cli("evaluate", "--help", COLUMNS="4000").stdout.split())
    for protocol in PROTOCOLS:
        assert f"{protocol.name}: {protocol.what} ({protocol.source})." in told
        assert callable(protocol.load())
        assert {*protocol.figures, *protocol.of_classes} <= FIGURES.keys()


def test_predictions_given_twice_count_once(cli: Callable[..., Any], tmp_path: Path) -> None:
    truth, predictions = tmp_path / "truth.csv", tmp_path / "predictions.csv"
    truth.write_text("Q1,R1\nQ2,R2\nQ3,\n")
    predictions.write_text("query_id,reference_id,score\nQ1,R1,0.5\nQ1,R1,0.9\nQ3,R1,0.8\nQ2,R2,0.7\nQ9,R1,2\n")
    done = cli("--json", "evaluate", "-p", "copy-detection", "--truth", str(truth), "--predictions", str(predictions))
    whole = json.loads(done.stdout)
    assert whole["models"][0]["figures"]["micro-ap"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    assert whole["data"] == str(truth)
    predictions.write_text("q1,R1,0.9\n")
    truth.write_text("Q1,R1\nQ2,R2\n")
    arguments = ["evaluate", "-p", "copy-detection", "--truth", str(truth), "--predictions", str(predictions)]
    assert "predicts nothing of any query" in cli(*arguments).stderr
    wrong: list[list[str]] = [["-m", "pdq"], ["--score-norm", "2"], ["-p", "classes"]]
    for options in wrong:
        arguments = ["-p", "copy-detection", "--truth", str(truth), "--predictions", str(predictions), *options]
        assert cli("evaluate", *arguments).returncode == 2
    assert {row["what"]: row["named"] for row in whole["notes"]} == {
        "predictions are of queries that the truth does not name, and are left out": ["Q9"],
        "predictions are given twice; the highest score counts": ["Q1,R1"],
    }


def test_a_summary_is_json_also_where_a_figure_is_no_number(
    judge: Evaluate, drawn: Path, tmp_path: Path, url: str
) -> None:
    truth = tmp_path / "pairs.csv"
    truth.write_text("a/00.png,b/01.png\n")
    judge("classes", "palette", data=drawn)
    with connect(url) as opened:
        opened.execute("update imgsearch.model set near = 1 where name = 'palette'")
    found = judge("duplicates", "palette", data=drawn, truth=truth)
    text = json.dumps(summary(found), default=str, allow_nan=False)
    assert json.loads(text)["models"][0]["figures"]["recall"]["value"] == 0
    assert os.linesep not in text
