"""Downloads over HTTP from a small hub: pinned, resumed, checked, and carried to a machine without a network."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pgimgsearch.database.connection import Connection
from tests.models.hub import COMMIT, Hub, serving
from tests.models.tiny import save, tiny

Run = Callable[..., Any]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with a DINOv2 and a timm network."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    root = tmp_path / "hub"
    save(root / "someone" / "tiny-dino", *tiny("dinov2-base"))
    (root / "timm" / "resnet10t.c3_in1k").mkdir(parents=True)
    network = timm.create_model("resnet10t")
    save_file(network.state_dict(), root / "timm" / "resnet10t.c3_in1k" / "model.safetensors")
    with serving(root) as served:
        yield served


@pytest.fixture
def online(program: Run, hub: Hub, tmp_path: Path) -> Run:
    """The command line with that hub, and caches of its own; in a process, as the hub's library reads its settings once."""

    def run(*arguments: str, **environment: str) -> Any:
        return program(*arguments, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "cache"),
                   PGIMGSEARCH_CACHE=str(tmp_path / "own"), **environment)  # fmt: skip

    return run


@pytest.mark.slow
def test_a_model_of_the_hub_is_downloaded_pinned_and_ingested(
    online: Run, hub: Hub, photos: Path, connection: Connection
) -> None:
    done = online("--json", "ingest", str(photos), "--model", "hf:someone/tiny-dino", "--revision", "main")
    assert json.loads(done.stdout)[0]["embedded"] == 12, done.stderr
    assert connection.execute("select revision, dim from imgsearch.model").fetchone() == (COMMIT, 32)
    again = online("--json", "ingest", str(photos), "--model", "hf:someone/tiny-dino", HF_HUB_OFFLINE="1")
    assert json.loads(again.stdout)[0]["unchanged"] == 12, again.stderr


def test_fetch_takes_what_is_needed_and_no_more(online: Run, hub: Hub) -> None:
    (hub.root / "someone" / "tiny-dino" / "onnx").mkdir()
    (hub.root / "someone" / "tiny-dino" / "onnx" / "model.onnx").write_bytes(b"x" * 1000)
    done = online("--json", "models", "fetch", "hf:someone/tiny-dino", "timm:resnet10t.c3_in1k")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert (first["revision"], second["revision"]) == (COMMIT, COMMIT)
    assert second["files"] == 1
    assert not any(path.endswith(".onnx") for _, path, _ in hub.asked)


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    from pgimgsearch.errors import ModelError
    from pgimgsearch.models.weights import download as files

    (hub.root / "weights.bin").write_bytes(bytes(range(256)) * 20_000)
    origin = files.Origin(f"{hub.url}/weights.bin")
    hub.break_after = 2_000_000
    with pytest.raises((ModelError, OSError)):
        files.download(origin, tmp_path / "bundle")
    path = files.download(origin, tmp_path / "bundle")
    assert path.read_bytes() == (hub.root / "weights.bin").read_bytes()
    ranges = [asked for _, name, asked in hub.asked if name == "/weights.bin"]
    assert ranges[0] is None
    assert str(ranges[1]).startswith("bytes=")
    assert ranges[1] != "bytes=0-"
    files.download(origin, tmp_path / "bundle")
    assert len([1 for _, name, _ in hub.asked if name == "/weights.bin"]) == 2  # the third found it there


@pytest.mark.slow
def test_an_interrupted_repository_goes_on(online: Run, hub: Hub) -> None:
    hub.break_after = 5_000_000
    online("models", "fetch", "timm:resnet10t.c3_in1k", HF_HUB_DISABLE_XET="1")
    done = online("--json", "models", "fetch", "timm:resnet10t.c3_in1k")
    assert done.returncode == 0, done.stderr
    wanted = (hub.root / "timm" / "resnet10t.c3_in1k" / "model.safetensors").stat().st_size
    assert json.loads(done.stdout)[0]["megabytes"] == round(wanted / 1e6, 1)


@pytest.mark.slow
def test_a_bundle_serves_a_machine_without_a_network(
    online: Run, program: Run, hub: Hub, photos: Path, tmp_path: Path, connection: Connection
) -> None:
    bundle, carried = tmp_path / "bundle", tmp_path / "carried"
    made = online("--json", "models", "fetch", "hf:someone/tiny-dino", "timm:resnet10t.c3_in1k", "--to", str(bundle))
    assert made.returncode == 0, made.stderr
    shutil.copytree(bundle, carried, symlinks=True)
    offline = {"HF_HOME": str(tmp_path / "far" / "cache"), "PGIMGSEARCH_CACHE": str(tmp_path / "far" / "own"),
               "HF_HUB_OFFLINE": "1"}  # fmt: skip
    refused = program("ingest", str(photos), "--model", "hf:someone/tiny-dino", **offline)
    assert refused.returncode == 5
    assert "could not be downloaded" in refused.stderr
    taken = program("--json", "models", "fetch", "hf:someone/tiny-dino", "--from", str(carried), **offline)
    assert json.loads(taken.stdout)[0]["revision"] == COMMIT, taken.stderr
    done = program("--json", "ingest", str(photos), "--model", "hf:someone/tiny-dino", **offline)
    assert json.loads(done.stdout)[0]["embedded"] == 12, done.stderr
    assert "does not hold" in program("models", "fetch", "dinov3", "--from", str(carried), **offline).stderr


@pytest.mark.parametrize(
    ("harm", "told"), [("truncate", "is truncated"), ("change", "wrong checksum"), ("lose", "lacks")]
)
def test_a_damaged_bundle_is_refused(online: Run, hub: Hub, tmp_path: Path, harm: str, told: str) -> None:
    bundle = tmp_path / "bundle"
    online("models", "fetch", "hf:someone/tiny-dino", "--to", str(bundle))
    victim = next(path for path in bundle.rglob("model.safetensors")).resolve()
    data = victim.read_bytes()
    if harm == "lose":
        victim.unlink()
    else:
        victim.write_bytes(data[:-10] if harm == "truncate" else data[:-1] + bytes([data[-1] ^ 1]))
    done = online("models", "fetch", "hf:someone/tiny-dino", "--from", str(bundle))
    assert done.returncode == 5
    assert told in done.stderr


def test_a_download_with_a_wrong_checksum_is_refused(online: Run, hub: Hub, tmp_path: Path) -> None:
    assert online("models", "fetch", "hf:someone/tiny-dino").returncode == 0
    blob = next((tmp_path / "cache").rglob("model.safetensors")).resolve()
    blob.chmod(0o644)
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = online("models", "fetch", "hf:someone/tiny-dino")
    assert done.returncode == 5
    assert "wrong checksum" in done.stderr
    assert f"rm {blob}" in done.stderr


@pytest.mark.slow
def test_verify_compares_with_the_library(online: Run, hub: Hub, photos: Path) -> None:
    done = online("--json", "models", "verify", "hf:someone/tiny-dino", "--images", str(photos))
    found = json.loads(done.stdout)
    assert found["equal"], done.stderr
    assert found["images"] == 12
    assert online("models", "verify", "palette").returncode == 5


@pytest.mark.slow
def test_two_outputs_of_a_repository_share_one_network(
    online: Run, hub: Hub, photos: Path, connection: Connection
) -> None:
    """Also where the first is stored with the commit that was found, and the second asked for without one."""
    done = online("--json", "ingest", str(photos), "--model", "hf:someone/tiny-dino", "--output", "cls,mean")
    assert [row["embedded"] for row in json.loads(done.stdout)] == [12, 12], done.stderr
    (stages,) = connection.execute("select timings from imgsearch.ingest_run").fetchone() or ({},)
    assert stages["embed hf:someone/tiny-dino+hf:someone/tiny-dino@mean"]["images"] == 12


def test_an_export_of_the_hub_is_found_where_such_repositories_keep_it(online: Run, hub: Hub, photos: Path) -> None:
    from pgimgsearch.models import lookup
    from tests.models.test_onnx import export
    from tests.support import checkpoints

    folder = hub.root / "someone" / "exported"
    export(folder / "onnx" / "model.onnx", (12,))
    export(folder / "onnx" / "model_quantized.onnx", (11,))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(checkpoints.processor_of(lookup.resolve("dinov2-small")))
    )
    done = online("--json", "ingest", str(photos), "--model", "onnx:someone/exported")
    assert json.loads(done.stdout)[0]["embedded"] == 12, done.stderr
    shown = json.loads(online("--json", "models", "show", "onnx:someone/exported").stdout)
    assert (shown["dim"], shown["revision"], shown["output"]) == (12, COMMIT, "vector")
    assert not any("quantized" in path for _, path, _ in hub.asked)
    assert "no output mean" in online("ingest", str(photos), "--model", "onnx:someone/exported@mean").stderr


@pytest.mark.slow
def test_a_bundle_can_be_taken_twice_and_names_nothing_outside(online: Run, hub: Hub, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    online("models", "fetch", "timm:resnet10t.c3_in1k", "pdq", "--to", str(bundle))
    for _ in range(2):
        done = online("models", "fetch", "timm:resnet10t.c3_in1k", "pdq", "--from", str(bundle))
        assert done.returncode == 0, done.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    (tmp_path / "outside").write_text("x")
    told = {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    manifest["pdq"]["files"] = {"../outside": told}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    refused = online("models", "fetch", "pdq", "--from", str(bundle))
    assert refused.returncode == 5
    assert "not the model's: ../outside" in refused.stderr
    manifest["timm:resnet10t.c3_in1k"]["files"] |= {"models--timm--resnet10t.c3_in1k/../../../outside": told}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    refused = online("models", "fetch", "timm:resnet10t.c3_in1k", "--from", str(bundle))
    assert refused.returncode == 5
    assert "not the model's" in refused.stderr
