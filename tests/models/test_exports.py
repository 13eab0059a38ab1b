"""Exports to ONNX: the same vectors and token ids, once made, without the library they came from."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.models import load as loading
from pgimgsearch.models import lookup
from pgimgsearch.models.backends import open_clip as backend
from pgimgsearch.models.backends import transformers as hf_backend
from pgimgsearch.models.catalog import CLIP_MEAN, CLIP_STD
from pgimgsearch.models.encoder import Placement, unit
from pgimgsearch.models.load import load
from pgimgsearch.models.runtime.cpu_features import faster_dtypes
from pgimgsearch.models.runtime.export_cache import find_export
from pgimgsearch.models.runtime.exported_encoder import ExportedEncoder
from pgimgsearch.models.runtime.onnx_export import TEXTS
from pgimgsearch.models.runtime.text_tokens import TextTokenizer
from pgimgsearch.models.runtime.torch_encoder import TorchEncoder
from tests.models.tiny import OPEN_CLIP, save, tiny
from tests.server.conftest import free_port
from tests.support.images import photo
from tests.support.imported import heavy_modules, heavy_modules_of_service

Run = Callable[..., Any]
ON_TORCH, ON_ONNX = Placement("cpu", "fp32", "torch"), Placement("cpu", "fp32", "onnx")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and the runtime that users get."""
    monkeypatch.setenv("PGIMGSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "ONNX_ON_CPUS", True)
    return tmp_path / "cache"


def tiny_clip(folder: Path) -> str:
    """A tiny CLIP of transformers with its real tokenizer."""
    torch.manual_seed(0)
    save(folder / "clip", *tiny("clip-vit-b-32"))
    return f"hf:{folder / 'clip'}"


def tiny_open_clip(folder: Path, kind: str) -> str:
    """A tiny network of open_clip in its format for folders."""
    import open_clip

    torch.manual_seed(0)
    made = folder / kind
    made.mkdir(parents=True)
    (made / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP[kind], "preprocess_cfg": {}}))
    network = open_clip.create_model(
        f"local-dir:{made}", pretrained_image=False, pretrained_text=False, load_weights=False
    )
    torch.save(network.state_dict(), made / "open_clip_pytorch_model.bin")
    return f"open_clip:{made}"


MAKERS: dict[str, Callable[[Path], str]] = {
    "hf clip": tiny_clip,
    **{f"open_clip {kind}": partial(tiny_open_clip, kind=kind) for kind in ("vit", "quickgelu", "resnet")},
}


@pytest.mark.slow
@pytest.mark.parametrize("maker", MAKERS)
def test_an_export_is_the_same_model(tmp_path: Path, cache: Path, pictures: list[Image.Image], maker: str) -> None:
    spec = lookup.resolve(MAKERS[maker](tmp_path))
    original, said = load(spec, ON_TORCH), list[str]()
    exported = load(spec, Placement("cpu"), say=said.append)
    assert isinstance(exported, ExportedEncoder), said
    assert "runs on ONNX Runtime" in said[-1]
    for output in original.dims:
        assert exported.fingerprint(output) == original.fingerprint(output)
    assert exported.dims == original.dims
    assert exported.preprocess == original.preprocess
    assert (exported.logit_scale, exported.logit_bias) == (original.logit_scale, original.logit_bias)
    prepared = [original.prepare(image) for image in pictures]
    ours, theirs = exported.embed(prepared), original.embed(prepared)
    for output in original.dims:
        assert (unit(ours[output]) * unit(theirs[output])).sum(1).min() >= 0.99999
    for texts in (["one"], [*TEXTS, "", "." * 500]):
        assert (exported.embed_text(texts) * original.embed_text(texts)).sum(1).min() >= 0.99999
    shutil.rmtree(tmp_path / spec.name.partition(":")[2])  # the checkpoint is not needed any more
    again = load(spec, Placement("cpu"), original.fingerprint(original.spec.output).__eq__)
    assert np.array_equal(again.embed_text(["a dog"]), exported.embed_text(["a dog"]))


@pytest.mark.slow
def test_commands_need_neither_torch_nor_transformers_then(
    cli: Run, cache: Path, photos: Path, tmp_path: Path, url: str, connection: Connection
) -> None:
    done = cli("ingest", str(photos), "--model", tiny_clip(tmp_path), PGIMGSEARCH_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert "runs on ONNX Runtime" in done.stderr
    placed = connection.execute("select placement -> 'hf:clip' ->> 'runtime' from imgsearch.ingest_run").fetchone()
    assert placed == ("onnx",)
    own = {"PGIMGSEARCH_DB": url, "PGIMGSEARCH_CONFIG": os.devnull, "PGIMGSEARCH_CACHE": str(cache)}
    for arguments in (
        ["search", str(photos / "a" / "00.png")], ["search", "--text", "a dog"], ["embed-text", "a cat"],
        ["doctor"], ["ingest", str(photos), "--retry-failed"],
    ):  # fmt: skip
        assert not heavy_modules(own, *arguments) & {"torch", "transformers", "open_clip", "timm"}, arguments
    serve = ["serve", "--port", str(free_port()), "--http-port", str(free_port())]
    own["PGIMGSEARCH_HOME"] = str(tmp_path / "home")
    imported = heavy_modules_of_service(own, "stop with Ctrl-C", *serve)
    assert not imported & {"torch", "transformers", "open_clip", "timm"}
    assert "onnxruntime" in imported


@pytest.mark.slow
def test_an_export_that_differs_is_refused_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pgimgsearch.models.runtime import onnx_export

    spec, said = lookup.resolve(tiny_clip(tmp_path)), list[str]()
    monkeypatch.setattr(onnx_export, "LEAST_COSINE", 1.1)
    assert isinstance(load(spec, Placement("cpu"), say=said.append), TorchEncoder)
    assert "runs on torch: the ONNX export of hf:clip differs: cosine 1.0" in said[1]
    monkeypatch.setattr(onnx_export, "_export", None)  # it is not tried again
    assert isinstance(load(spec, Placement("cpu"), say=said.append), TorchEncoder)
    assert said[3] == said[1]
    with pytest.raises(ModelError, match="differs"):
        load(spec, ON_ONNX)


@pytest.mark.slow
def test_an_export_that_was_killed_is_not_found(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what failed for want of space remembered."""
    from pgimgsearch.models.runtime import onnx_export

    spec = lookup.resolve(tiny_clip(tmp_path))
    original = load(spec, ON_TORCH)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "_lowest_cosine", full)
        with pytest.raises(OSError, match="No space"):
            load(spec, ON_ONNX)
    left = cache / "onnx" / "1" / ".unfinished-x"
    shutil.copytree(load(spec, ON_ONNX)._folder, left)  # type: ignore[attr-defined]
    for folder in (cache / "onnx" / "1").iterdir():
        if folder != left:
            shutil.rmtree(folder)
    assert find_export(original.fingerprint("projection").__eq__) is None


@pytest.mark.slow
def test_a_model_of_fewer_dimensions_uses_the_export(
    cli: Run, cache: Path, photos: Path, tmp_path: Path, url: str, connection: Connection
) -> None:
    model, own = tiny_clip(tmp_path), {"PGIMGSEARCH_CACHE": str(cache)}
    cli("ingest", str(photos), "--model", model, **own)
    done = cli("ingest", str(photos), "--model", model, "--dim", "4", "--reduction", "truncate", **own)
    assert done.returncode in {0, 5}, done.stderr
    if done.returncode == 5:  # twelve images are too few to fit on
        for number in range(60):
            photo(photos / f"more-{number}.png", seed=100 + number)
        assert cli("ingest", str(photos), "--model", model, **own).returncode == 0
        done = cli("ingest", str(photos), "--model", model, "--dim", "4", "--reduction", "truncate", **own)
        assert done.returncode == 0, done.stderr
    known = {"PGIMGSEARCH_DB": url, "PGIMGSEARCH_CONFIG": os.devnull} | own
    used = heavy_modules(known, "search", str(photos / "a" / "00.png"), "--model", "hf:clip@4")
    assert not used & {"torch", "transformers"}
    changed = cli("models", "add", model, "--as", "again", **own)  # anew: from the weights, not from the export
    assert changed.returncode == 0, changed.stderr


@pytest.mark.slow
def test_int8_runs_on_onnx_by_itself(tmp_path: Path, cache: Path, pictures: list[Image.Image]) -> None:
    spec = lookup.resolve(tiny_clip(tmp_path))
    quick = load(spec, Placement("cpu", "int8"))
    assert (quick.runtime, quick.dtype, quick.faster_dtypes) == ("onnx", "int8", ())
    assert 0.99 < quick.check([quick.prepare(image) for image in pictures]) < 1  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="ONNX Runtime only"):
        load(spec, Placement("cpu", "int8", "torch"))


# Not assigned by Unicode 14 (Cn): what such a character is depends on the Unicode version of each library.
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["immich", "transformers.js"])
def test_folders_of_others_have_both_towers(
    tmp_path: Path, cache: Path, pictures: list[Image.Image], layout: str
) -> None:
    """Exported towers in the layout of each, against the network they came from."""
    import onnx
    import onnx.compose

    spec = lookup.resolve(tiny_open_clip(tmp_path, "vit") if layout == "immich" else tiny_clip(tmp_path))
    original, checkpoint = load(spec, ON_TORCH), Path(spec.weights or "")
    load(spec, ON_ONNX)
    (export,) = (cache / "onnx" / "1").iterdir()
    folder = tmp_path / "others"
    names = (
        ("visual/model.onnx", "textual/model.onnx")
        if layout == "immich"
        else ("onnx/vision_model.onnx", "onnx/text_model.onnx")
    )
    for kind, name in zip(("image", "text"), names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tower = onnx.load(export / kind / "model.onnx")
        if len(tower.graph.input) == 1:  # its name says nothing then
            onnx.compose.add_prefix_graph(tower.graph, "their_", rename_outputs=False, inplace=True)
        onnx.save(tower, folder / name)
    plain = json.loads((export / "tokenizer.json").read_text()) | {"truncation": None, "padding": None}
    if layout == "immich":
        (folder / "textual" / "tokenizer.json").write_text(json.dumps(plain))
        (folder / "config.json").write_text(json.dumps(OPEN_CLIP["vit"]))
        how = {
            "size": [64, 64],
            "mean": CLIP_MEAN,
            "std": CLIP_STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        }
        (folder / "visual" / "preprocess_cfg.json").write_text(json.dumps(how))
    else:
        (folder / "tokenizer.json").write_text(json.dumps(plain))
        for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
            shutil.copy(checkpoint / name, folder / name)
    loaded = load(lookup.resolve(f"onnx:{folder}"), Placement("cpu"))
    prepared = [original.prepare(image) for image in pictures]
    assert all(np.array_equal(loaded.prepare(image), one) for image, one in zip(pictures, prepared, strict=True))
    ours, theirs = next(iter(loaded.embed(prepared).values())), original.embed(prepared)["projection"]
    assert (unit(ours) * unit(theirs)).sum(1).min() >= 0.99999
    assert (loaded.embed_text(TEXTS) * original.embed_text(TEXTS)).sum(1).min() >= 0.99999
    (folder / names[1]).unlink()
    alone = load(lookup.resolve(f"onnx:{folder}"), Placement("cpu"))
    assert not alone.reads_text
    with pytest.raises(ModelError, match="cannot read text"):
        alone.embed_text(["a dog"])


Reference = Callable[[list[str]], Any]
Tokenizers = tuple[Reference, Callable[[str], int], TextTokenizer]
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="\0"), max_size=60)
PIECES = st.sampled_from(
    [*TEXTS, "&lt;", "&#39;", "â€™", "Ã©", "<|endoftext|>", "İstanbul", "ﬁ", "\u200b", "1st 2nd", "don't"]
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizers]:
    """Reference, its count and ours: open_clip's own, in each of its ways to clean texts, and CLIP's of transformers."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import AutoConfig, AutoTokenizer

    folder, made = tmp_path_factory.mktemp("tokenizers"), []

    def add(reference: Reference, count: Callable[[str], int], portable: tuple[Any, str] | None) -> None:
        assert portable is not None
        file = folder / f"{len(made)}.json"
        portable[0].save(str(file))
        made.append((reference, count, TextTokenizer(file, portable[1])))

    for clean in ("lower", "whitespace", "canonicalize"):
        theirs = SimpleTokenizer(clean=clean)
        add(
            lambda texts, theirs=theirs: theirs(texts).numpy(),
            partial(backend.count_tokens, theirs),
            backend.portable(theirs),
        )  # type: ignore[misc]
    name = tiny_clip(folder).partition(":")[2]
    tokenizer, config = AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name)
    encode = hf_backend.tokenize(tokenizer, config)
    add(lambda texts: encode(texts)["input_ids"].numpy(), lambda text: len(tokenizer(text, verbose=False)["input_ids"]),
        hf_backend.portable(tokenizer, config))  # fmt: skip
    return made


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(WORDS | PIECES, max_size=6).map(" ".join), min_size=1, max_size=3))
def test_token_ids_are_those_of_the_reference(tokenizers: list[Tokenizers], texts: list[str]) -> None:
    for reference, _, ours in tokenizers:
        assert np.array_equal(ours(texts)[0], reference(texts)), texts


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(WORDS | PIECES | st.sampled_from(["red dress", "x" * 50]), max_size=60).map(" ".join))
def test_a_text_is_called_cut_where_its_end_is_not_read(tokenizers: list[Tokenizers], text: str) -> None:
    for reference, count, ours in tokenizers:
        tokens = ours.count([text])[0]
        assert tokens == count(text)
        if tokens > ours.context:
            assert np.array_equal(reference([text]), reference([text + " shoes"])), "the end is read"
        elif tokens < ours.context:
            assert not np.array_equal(reference([text]), reference([text + " shoes"])), "the end is not read"


@pytest.mark.parametrize(
    ("vendor", "flags", "products", "gains"),
    [
        ("GenuineIntel", "avx512_vnni amx_bf16 amx_int8", True, ("int8", "bf16")),
        ("GenuineIntel", "avx512_vnni avx512_bf16", True, ("int8",)),  # bf16 is slower than fp32 there
        ("AuthenticAMD", "avx512_vnni avx512_bf16", True, ("int8", "bf16")),
        ("AuthenticAMD", "avx512_vnni avx512_bf16", False, ("bf16",)),
        ("GenuineIntel", "avx2", True, ()),
    ],
)
def test_a_precision_is_advised_where_the_processor_gains(
    tmp_path: Path, vendor: str, flags: str, products: bool, gains: tuple[str, ...]
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"vendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n")
    assert faster_dtypes(matrix_products=products, file=file) == gains
