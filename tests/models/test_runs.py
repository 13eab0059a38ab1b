"""Outputs, dimensions, runtimes, precisions and canaries, through the normal commands on real Postgres."""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import torch

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.embeddings.registry import Loader, check_canary, open_model, store_model
from pgimgsearch.errors import DriftError, ModelError
from pgimgsearch.ingest import run
from pgimgsearch.models import canary, lookup, reduction
from pgimgsearch.models.encoder import Placement, unit
from pgimgsearch.models.load import load
from pgimgsearch.models.runtime.batches import Batches, find_size
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.reporter import SILENT
from pgimgsearch.sources.folder import folder_source
from tests.models.tiny import save, tiny
from tests.support.images import photo
from tests.support.imported import heavy_modules

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
PINNED = ["0c114f2e5bf3", "97ece9d51c46", "f1f7cc567500", "9a51b543cff8"]


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """A tiny CLIP with its real tokenizer."""
    torch.manual_seed(0)
    save(tmp_path / "clip", *tiny("clip-vit-b-32"))
    return f"hf:{tmp_path / 'clip'}"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Sixty images, and one that is broken."""
    for number in range(60):
        photo(tmp_path / "many" / f"{number:02}.png", seed=number)
    (tmp_path / "many" / "broken.png").write_bytes(b"no image")
    return tmp_path / "many"


def test_two_outputs_share_one_forward_pass(cli: Run, connection: Connection, clip: str, photos: Path) -> None:
    done = cli("--json", "ingest", str(photos), "--model", clip, "--output", "projection,hidden")
    counts = {row["model"]: row["embedded"] for row in json.loads(done.stdout)}
    assert counts == {"hf:clip": 12, "hf:clip@hidden": 12}, done.stderr
    (stages,) = connection.execute("select timings from imgsearch.ingest_run").fetchone() or ({},)
    passes = {name: stage["images"] for name, stage in stages.items() if name.startswith("embed")}
    assert passes == {"embed hf:clip+hf:clip@hidden": 12}
    assert stages["scan"]["images"] == stages["decode"]["images"] == 12
    rows = connection.execute("select name, dim, has_text from imgsearch.model order by name").fetchall()
    assert rows == [("hf:clip", 24, True), ("hf:clip@hidden", 32, False)]
    assert connection.execute("select count(*) from imgsearch.similar(1, 5, 'hf:clip@hidden')").fetchone() == (5,)
    refused = cli("search", "--text", "a dog", "--model", "hf:clip@hidden")
    assert "models here that can: hf:clip" in refused.stderr


def test_an_output_that_is_not_there_is_refused_before_anything_is_written(
    cli: Run, connection: Connection, clip: str, photos: Path
) -> None:
    done = cli("ingest", str(photos), "--model", clip, "--output", "mean")
    assert done.returncode == 5
    assert "projection, hidden" in done.stderr
    assert connection.execute("select count(*) from imgsearch.image").fetchone() == (0,)
    assert connection.execute("select count(*) from imgsearch.ingest_run").fetchone() == (0,)


def test_templates_are_averaged_and_cached_with_the_text(
    cli: Run, url: str, connection: Connection, clip: str, photos: Path
) -> None:
    cli("ingest", str(photos), "--model", clip)
    forms = ["--template", "a photo of a {}", "--template", "{} in a shop"]
    assert '"embedded": 1' in cli("--json", "embed-text", "dress", *forms).stdout
    assert '"embedded": 0' in cli("--json", "embed-text", "dress", *forms).stdout
    assert '"embedded": 1' in cli("--json", "embed-text", "dress").stdout
    with connect(url) as opened:
        network = open_model(opened, "text").encoder
    expected = unit(network.embed_text(["a photo of a dress", "dress in a shop"]).mean(0, keepdims=True))[0]
    template = "a photo of a {}\n{} in a shop"
    (stored,) = connection.execute(
        "select imgsearch.text_vector('dress', template => %s)::real[]", [template]
    ).fetchone() or ([],)
    assert np.allclose(stored, expected, atol=1e-5)
    similar = "select path, similarity from imgsearch.search_text('dress', 3, template => %s)"
    assert len(connection.execute(similar, [template]).fetchall()) == 3
    assert cli("embed-text", "dress", "--template", "no place").returncode == 2
    with pytest.raises(psycopg.Error) as raised:
        connection.execute("select * from imgsearch.search_text('hat', template => 'a {}')")
    assert "--template 'a {}' 'hat'" in str(raised.value.diag.message_hint)


@pytest.mark.parametrize("kind", ["pca", "truncate"])
def test_reduced_vectors_keep_neighbours_and_serve_queries(
    cli: Run, url: str, connection: Connection, clip: str, many: Path, kind: str
) -> None:
    """Fitted on a sample of the images; stored vectors, texts and images from outside go through the same map."""
    done = cli("--json", "ingest", str(many), "--model", clip, "--dim", "8", "--reduction", kind)
    assert json.loads(done.stdout)[0] == {
        "collection": "many", "model": "hf:clip@8", "scanned": 61, "embedded": 60, "reused": 0, "unchanged": 0,
        "skipped": 0, "failed": 1,
    }, done.stderr  # fmt: skip
    assert "of the ten nearest neighbours" in done.stderr
    with connect(url) as opened:
        model = open_model(opened, "hf:clip@8")
        assert check_canary(opened, model) == pytest.approx(0, abs=1e-6)
    assert model.reduction is not None
    text = model.embed_texts(["a red dress"])[0]
    expected = unit(model.reduction.apply(model.encoder.embed_text(["a red dress"])))[0]
    assert np.allclose(text, expected, atol=1e-6)
    found = json.loads(cli("--json", "search", str(many / "07.png"), "-k", "1").stdout)
    assert found[0]["path"] == "07.png"
    assert found[0]["similarity"] > 0.99
    assert cli("search", "--text", "a red dress", "-k", "1").returncode == 0
    again = cli("--json", "ingest", str(many), "--model", clip, "--dim", "8")
    assert json.loads(again.stdout)[0]["unchanged"] == 60, again.stderr


def test_a_reduced_model_is_filled_from_stored_vectors(
    cli: Run, url: str, connection: Connection, clip: str, many: Path
) -> None:
    cli("ingest", str(many), "--model", clip)
    done = cli("models", "add", clip, "--dim", "6", "--as", "small")
    assert "60 vectors taken over from hf:clip" in done.stderr
    with connect(url) as opened:
        model = open_model(opened, "small")
        full = np.array(
            [
                row[0]
                for row in connection.execute(
                    "select embedding::vector::real[] from imgsearch.images_hf_clip order by image_id"
                )
            ],
            dtype=np.float32,
        )
    stored = [
        row[0]
        for row in connection.execute("select embedding::vector::real[] from imgsearch.images_small order by image_id")
    ]
    assert model.reduction is not None
    assert np.allclose(stored, unit(model.reduction.apply(full)), atol=2e-3)
    assert cli("models", "add", "palette", "--dim", "4").returncode == 5  # there are no vectors of it
    assert "too few" in cli("models", "add", clip, "--dim", "23", "--as", "x").stderr
    assert "a hash" in cli("models", "add", "pdq", "--dim", "23").stderr


def test_principal_components_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    data = unit((rng.standard_normal((400, 5)) @ rng.standard_normal((5, 20))).astype(np.float32))
    kept = reduction.fit(data, 5, "pca")  # the data have five dimensions, so nothing is lost
    reduced = kept.apply(data)
    assert np.allclose(reduced @ reduced.T, data @ data.T, atol=1e-4)
    assert reduction.recall_kept(data, kept, queries=100) > 0.99
    white = reduction.fit(data, 5, "whiten").apply(data)
    assert np.allclose(np.cov(white.T, bias=True), np.eye(5), atol=1e-2)
    assert np.array_equal(reduction.fit(data, 3, "truncate").apply(data), unit(data)[:, :3])
    for dim, kind in ((data.shape[1], "pca"), (data.shape[1] + 1, "whiten"), (0, "whiten")):
        with pytest.raises(ModelError, match="cannot reduce"):
            reduction.fit(data, dim, kind)
    assert reduction.fit(data, data.shape[1], "whiten").dim == data.shape[1]


def test_an_exported_network_continues_what_torch_began(
    cli: Run, connection: Connection, clip: str, many: Path, tmp_path: Path
) -> None:
    own = {"PGIMGSEARCH_CACHE": str(tmp_path / "cache")}
    cli("ingest", str(many), "--model", clip, "--limit", "10")
    done = cli("--json", "ingest", str(many), "--model", clip, "--runtime", "onnx", **own)
    assert json.loads(done.stdout)[0]["embedded"] == 50, done.stderr
    done = cli("ingest", str(many), "--model", clip, "--dtype", "int8", "--retry-failed", **own)
    placements = connection.execute("select placement from imgsearch.ingest_run order by run_id limit 2").fetchall()
    assert [row[0]["hf:clip"]["runtime"] for row in placements] == ["torch", "onnx"]
    exported = list((tmp_path / "cache" / "onnx").rglob("export.json"))
    assert len(exported) == 1
    before = exported[0].stat().st_mtime_ns
    photo(many / "new.png", seed=99)
    done = cli("ingest", str(many), "--model", clip, "--dtype", "int8", **own)
    assert re.search(r"hf:clip in int8: lowest cosine with fp32 0\.99\d+ over 1[56] images", done.stderr), done.stderr
    assert exported[0].stat().st_mtime_ns == before


def test_int8_that_is_another_model_is_refused(
    url: str, connection: Connection, clip: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGIMGSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pgimgsearch.models.runtime.exported_encoder.LEAST_INT8_COSINE", 1.1)
    request = ModelRequest([clip], placement=Placement("cpu", "int8"))
    with pytest.raises(ModelError, match="in int8 is not the same model: cosine 0"):
        open_models(url, request, [folder_source(photos)])
    for table in ("image", "model", "alias"):
        assert connection.execute(f"select count(*) from imgsearch.{table}").fetchone() == (0,)  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_stays_within_its_tolerance(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for family in ("clip-vit-b-32", "dinov2-base", "siglip-b-16-224", "dinov3-hf"):
        save(tmp_path / family, *tiny(family))
        spec = lookup.resolve(f"hf:{tmp_path / family}")
        full, half = load(spec, Placement("cpu", "fp32")), load(spec, Placement("cpu", dtype))
        assert half.dtype == dtype
        assert full.fingerprint(full.spec.output) == half.fingerprint(half.spec.output)
        distance = canary.drift(canary.vectors(full, full.spec.output), canary.vectors(half, half.spec.output))
        assert 0 < distance < canary.TOLERANCE[dtype], family
        if full.reads_text:
            assert (full.embed_text(["a dog"]) * half.embed_text(["a dog"])).sum() > 0.995


def test_a_rerun_with_nothing_to_do_loads_no_network(
    cli: Run, url: str, connection: Connection, clip: str, many: Path, tmp_path: Path
) -> None:
    """A file that fails again is nothing to embed; a new one is, among unchanged ones."""
    own = {"PGIMGSEARCH_DB": url, "PGIMGSEARCH_CONFIG": os.devnull}
    cli("ingest", str(many), "--model", clip, "--model", "pdq")
    for models in (["--model", clip], ["--model", "hf:clip", "--model", "pdq"], ["--all-models"], ["--retry-failed"]):
        assert not heavy_modules(own, "ingest", str(many), *models) & {"torch", "onnxruntime", "transformers"}
    photo(many / "zz.png", seed=100)
    done = cli("--json", "ingest", str(many), "--model", clip, "--model", "pdq")
    counts = [{key: row[key] for key in ("embedded", "unchanged", "skipped")} for row in json.loads(done.stdout)]
    assert counts == [{"embedded": 1, "unchanged": 60, "skipped": 1}] * 2
    loads = "select timings ? 'load' from imgsearch.ingest_run order by run_id"  # the first loaded before it began
    assert connection.execute(loads).fetchall() == [(False,)] * 5 + [(True,)]
    placed = "select placement -> 'hf:clip' ->> 'runtime' from imgsearch.ingest_run order by run_id"
    assert connection.execute(placed).fetchall() == [("torch",), *[(None,)] * 4, ("torch",)]


def test_a_model_that_cannot_be_loaded_stops_the_run_that_needs_it(
    cli: Run, connection: Connection, clip: str, photos: Path
) -> None:
    """And no file is blamed for it."""
    cli("ingest", str(photos), "--model", clip)
    Path(clip.removeprefix("hf:")).rename(photos.parent / "moved")
    assert cli("ingest", str(photos)).returncode == 0
    photo(photos / "new.png", seed=50)
    done = cli("ingest", str(photos))
    assert (done.returncode, "are gone" in done.stderr) == (5, True)
    assert connection.execute("select count(*) from imgsearch.ingest_failure").fetchone() == (0,)
    assert connection.execute("select status from imgsearch.ingest_run order by run_id desc").fetchone() == ("failed",)


def test_a_drift_stops_with_what_changed(cli: Run, url: str, connection: Connection, photos: Path, clip: str) -> None:
    cli("ingest", str(photos), "--model", clip)
    assert cli("doctor").returncode == 0
    connection.execute("update imgsearch.canary set made_with = made_with || '{\"pillow\": \"1.0\"}', "
                       "embeddings = (select array_agg(array_fill(1.0::real, array[24])) from generate_series(1, 4))")  # fmt: skip
    photo(photos / "new.png", seed=50)
    done = cli("ingest", str(photos), "--model", clip)
    assert done.returncode == 5
    assert "has drifted" in done.stderr
    assert "pillow 1.0 ->" in done.stderr
    told = cli("--json", "doctor")
    assert told.returncode == 1
    assert any(row["check"] == "canary hf:clip" and row["state"] == "bad" for row in json.loads(told.stdout))
    with connect(url) as opened, pytest.raises(DriftError):
        check_canary(opened, open_model(opened, "hf:clip"))


def test_canaries_are_the_same_pictures_everywhere() -> None:
    """Another drawing would make every stored model drift."""
    import hashlib

    digests = [hashlib.sha256(picture.tobytes()).hexdigest()[:12] for picture in canary.images()]
    assert digests == PINNED
    assert len({picture.size for picture in canary.images()}) == 4


class Cramped:
    """An encoder whose device holds so many images at once."""

    preprocess = {"size": [4, 4]}  # noqa: RUF012

    def __init__(self, room: int, device: str = "cuda") -> None:
        self.room, self.device, self.sizes = room, device, list[int]()
        self.spec = lookup.resolve("resnet50")

    def prepare(self, _: Any) -> Any:
        return np.zeros(3, dtype=np.float32)

    def embed(self, prepared: Sequence[Any]) -> dict[str, Any]:
        self.sizes.append(len(prepared))
        if len(prepared) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"pool": np.stack(prepared)}


def test_batches_are_halved_until_they_fit_and_lose_nothing() -> None:
    rows = [np.full(3, number, dtype=np.float32) for number in range(50)]
    network = Cramped(room=6)
    batches = Batches(network, 32)  # type: ignore[arg-type]
    assert batches.embed(rows)["pool"][:, 0].tolist() == list(range(50))
    assert network.sizes[:4] == [32, 16, 8, 4]
    assert batches.size == 4
    with pytest.raises(ModelError, match="does not fit into the memory"):
        Batches(Cramped(room=0), 4).embed(rows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="all input arrays"):  # any other error is not about memory
        Batches(network, 4).embed([*rows[:2], np.zeros(9)])  # type: ignore[arg-type]


def test_a_gpus_batch_is_one_that_fits() -> None:
    roomy = Cramped(room=40)
    assert find_size(roomy, 32) in {8, 16, 32}  # type: ignore[arg-type]
    assert max(roomy.sizes) <= 64  # it stops at the first that does not fit
    assert find_size(Cramped(room=0), 32) == 1  # type: ignore[arg-type]
    assert find_size(Cramped(room=40, device="cpu"), 8) == 8  # type: ignore[arg-type]


def test_a_cpu_that_runs_out_of_memory_still_finishes(
    url: str, connection: Connection, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(url) as opened:
        model = open_model(opened, "palette")
    original = model.encoder.embed

    def cramped(prepared: Sequence[Any]) -> Any:
        if len(prepared) > 5:
            raise MemoryError
        return original(prepared)

    monkeypatch.setattr(model.encoder, "embed", cramped)
    report = run.ingest(url, folder_source(many), [model], run.Options(workers=2))
    assert report.counts["palette"]["embedded"] == 60
    assert connection.execute("select count(*) from imgsearch.images_palette").fetchone() == (60,)


def test_a_name_with_weights_of_another_family_is_refused(
    cli: Run, connection: Connection, clip: str, photos: Path
) -> None:
    folder = clip.removeprefix("hf:")
    for name, told in (("dinov2-base", "no output cls"), ("clip-vit-b-32", "dimension 24"), ("dinov3", "do not fit")):
        weights = folder if name != "dinov3" else f"{folder}/model.safetensors"
        done = cli("ingest", str(photos), "--model", name, "--weights", weights)
        assert done.returncode == 5, name
        assert told in done.stderr, done.stderr
    assert connection.execute("select count(*) from imgsearch.model").fetchone() == (0,)


def test_int8_needs_its_runtime(cli: Run, photos: Path) -> None:
    done = cli("ingest", str(photos), "--model", "mobilenetv2", "--dtype", "int8", "--runtime", "torch")
    assert done.returncode == 2
    assert "leave --runtime torch out" in done.stderr


def test_one_model_only_takes_a_revision(cli: Run, photos: Path) -> None:
    done = cli("ingest", str(photos), "-m", "palette", "-m", "pdq", "--revision", "main")
    assert done.returncode == 2
    assert "--revision belongs to exactly one --model" in done.stderr


def test_another_checkpoint_of_the_same_name_is_noticed(cli: Run, tmp_path: Path, photos: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        torch.manual_seed(number)
        save(tmp_path / folder / "model", *tiny("dinov2-base"))
    assert cli("ingest", str(photos), "--model", f"hf:{tmp_path}/a/model").returncode == 0
    done = cli("ingest", str(photos), "--model", f"hf:{tmp_path}/b/model", "--retry-failed")
    assert done.returncode == 5
    assert "the weights differ" in done.stderr


def test_derived_models_keep_licence_and_threshold(
    connection: Connection, url: str, tmp_path: Path, many: Path
) -> None:
    from dataclasses import replace

    torch.manual_seed(0)
    save(tmp_path / "clip", *tiny("clip-vit-b-32"))
    row = replace(lookup.resolve("clip-vit-b-32", Checkpoint(str(tmp_path / "clip"))), dim=24, also={"hidden": 32})
    with connect(url) as opened:
        store_model(opened, row, Loader(Placement("cpu")).load(row))
    for request in (ModelRequest(["clip-vit-b-32"], ("hidden",)), ModelRequest(["clip-vit-b-32"], dim=8)):
        open_models(url, request, [folder_source(many)], reporter=SILENT)
    rows = connection.execute("select name, licence, near from imgsearch.model order by name").fetchall()
    assert [row[0] for row in rows] == ["clip-vit-b-32", "clip-vit-b-32@8", "clip-vit-b-32@hidden"]
    assert all(row[1] == "MIT" and row[2] == pytest.approx(0.96) for row in rows)


def test_a_sample_that_is_too_small_is_refused(cli: Run, connection: Connection, clip: str, photos: Path) -> None:
    for kind in ("pca", "truncate"):
        done = cli("ingest", str(photos), "--model", clip, "--dim", "8", "--reduction", kind)
        assert done.returncode == 5
        assert "too few" in done.stderr
    assert connection.execute("select count(*) from imgsearch.model").fetchone() == (0,)
    assert cli("ingest", str(photos), "--model", clip, "--reduction", "pca").returncode == 2
    assert cli("ingest", str(photos), "--model", clip, "--dim", "8", "--dry-run").returncode == 0


def test_a_reduced_model_is_reduced_no_further(cli: Run, clip: str, many: Path) -> None:
    cli("ingest", str(many), "--model", clip, "--dim", "8")
    done = cli("ingest", str(many), "--model", "default", "--dim", "4")
    assert done.returncode == 2
    assert "is reduced already" in done.stderr


def test_networks_of_convolutions_have_no_int8(cli: Run, tmp_path: Path, photos: Path) -> None:
    import timm

    torch.save(timm.create_model("mobilenetv2_035").state_dict(), tmp_path / "w.pt")
    arguments = ["ingest", str(photos), "--model", "timm:mobilenetv2_035", "--weights", str(tmp_path / "w.pt"),
                 "--runtime", "onnx"]  # fmt: skip
    refused = cli(*arguments, "--dtype", "int8", PGIMGSEARCH_CACHE=str(tmp_path / "cache"))
    assert refused.returncode == 5
    assert "convolutions alone" in refused.stderr
    assert cli(*arguments, PGIMGSEARCH_CACHE=str(tmp_path / "cache")).returncode == 0


def test_an_export_of_the_same_name_elsewhere_speaks_for_itself(cli: Run, tmp_path: Path, photos: Path) -> None:
    from tests.models.test_onnx import export

    first, second = export(tmp_path / "a" / "model.onnx", (12,)), export(tmp_path / "b" / "model.onnx", (12,))
    assert cli("ingest", str(photos), "--model", f"onnx:{first}", "--preprocess", "imagenet").returncode == 0
    assert cli("ingest", str(photos), "--model", f"onnx:{first}").returncode == 0  # it is known by now
    assert "nothing says how" in cli("ingest", str(photos), "--model", f"onnx:{second}").stderr
    assert "nothing says how" in cli("models", "add", f"onnx:{first}", "--as", "other").stderr


def test_a_stored_model_goes_by_every_name_that_adds_it(cli: Run, clip: str, photos: Path, tmp_path: Path) -> None:
    assert cli("ingest", str(photos), "--model", clip).returncode == 0
    for name in (clip, "hf:clip", "default"):
        for command in (
            ["search", str(photos / "a" / "00.png"), "--model", name], ["embed-text", "a dog", "--model", name],
            ["models", "show", name], ["models", "alias", "mine", name], ["index", "build", name],
            ["export", str(tmp_path / "out.parquet"), "--model", name], ["duplicates", "--model", name],
        ):  # fmt: skip
            done = cli(*command)
            assert done.returncode == 0, (command, done.stderr)
    assert cli("index", "build", f"hf:{tmp_path / 'photos'}").returncode == 5


def test_weights_that_moved_are_found_again(cli: Run, connection: Connection, clip: str, photos: Path) -> None:
    cli("ingest", str(photos), "--model", clip)
    old = Path(clip.removeprefix("hf:"))
    new = old.rename(old.with_name("moved"))
    gone = cli("search", str(photos / "a" / "00.png"))
    assert gone.returncode == 5
    assert "are gone" in gone.stderr
    done = cli("--json", "ingest", str(photos), "--model", "default", "--weights", str(new))
    assert json.loads(done.stdout)[0]["unchanged"] == 12
    assert connection.execute("select weights from imgsearch.model").fetchone() == (str(new),)
    assert cli("search", str(photos / "a" / "00.png")).returncode == 0
