"""The catalog and the built-in models."""

import numpy as np
import pytest
from PIL import Image

from pgimgsearch.errors import ModelError
from pgimgsearch.models import catalog, lookup
from pgimgsearch.models.backends import backends, palette
from pgimgsearch.models.encoder import SkippedImage, unit
from pgimgsearch.models.load import load
from pgimgsearch.models.spec import Checkpoint, ModelSpec


@pytest.mark.parametrize("spec", catalog.CATALOG, ids=lambda spec: spec.name)
def test_every_row_is_whole(spec: ModelSpec) -> None:
    assert spec.backend in backends()
    assert spec.dim > 0
    assert spec.good_for
    assert spec.licence != ModelSpec("x", "x", "x").licence
    assert lookup.resolve(spec.name) == spec
    if spec.gated:
        assert spec.alternative in lookup.names()


@pytest.mark.parametrize(("typed", "meant"), [("dinov4", "dinov3"), ("clip-vit-b32", "clip-vit-b-32"), ("PDQ", "pdq")])
def test_an_unknown_name_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"unknown model: {typed}") as raised:
        lookup.resolve(typed)
    assert meant in str(raised.value.hint)


def test_prefixes_reach_other_models_and_folders(tmp_path: object) -> None:
    assert lookup.resolve("timm:resnet18.a1_in1k").backend == "timm"
    assert lookup.resolve("open_clip:ViT-B-32/openai").backend == "open_clip"
    assert lookup.resolve(f"hf:{tmp_path}").weights == str(tmp_path)
    with pytest.raises(ModelError, match="no checkpoint"):
        lookup.resolve("hf:/nowhere/at/all")
    with pytest.raises(ModelError, match="no checkpoint"):
        lookup.resolve("resnet50", Checkpoint("/nowhere.safetensors"))


def test_pdq_knows_copies_and_skips_flat_pictures() -> None:
    pdq = load(lookup.resolve("pdq"))
    noise = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    other = Image.fromarray(noise[::-1].copy()).resize((640, 480), Image.Resampling.BICUBIC)
    original, small, different = (pdq.prepare(p) for p in (picture, picture.resize((200, 150)), other))
    assert np.count_nonzero(original != small) <= 31 < np.count_nonzero(original != different)
    with pytest.raises(SkippedImage, match="quality 0"):
        pdq.prepare(Image.new("RGB", (300, 300), "white"))
    with pytest.raises(ModelError, match="cannot read text"):
        pdq.embed_text(["x"])


@pytest.mark.parametrize("name", palette.COLOURS)
def test_palette_finds_each_colour_by_its_name(name: str) -> None:
    model = load(lookup.resolve("palette"))
    names = list(palette.COLOURS)
    swatches = [model.prepare(Image.new("RGB", (80, 80), palette.COLOURS[other])) for other in names]
    similarities = unit(model.embed(swatches)["histogram"]) @ model.embed_text([name])[0]
    assert names[int(similarities.argmax())] == name


def test_palette_reads_phrases_and_says_what_it_cannot_read() -> None:
    model = load(lookup.resolve("palette"))
    both = Image.new("RGB", (80, 80), palette.COLOURS["navy"])
    both.paste(palette.COLOURS["gold"], (0, 0, 40, 80))
    half = unit(model.embed([model.prepare(both)])["histogram"])[0]
    assert half @ model.embed_text(["a Navy dress with GOLDEN buttons"])[0] > 0.95
    with pytest.raises(ModelError, match="names no colour"):
        model.embed_text(["a dress"])


def test_unit_rows_have_length_one_and_zero_stays_zero() -> None:
    rows = np.array([[3, 4], [0, 0], [np.inf, 1], [1e-30, 0]], dtype=np.float32)
    scaled = unit(rows)
    assert np.allclose(scaled[0], [0.6, 0.8])
    assert not scaled[1].any()
    assert not np.isfinite(scaled[2]).all()
    assert np.allclose(scaled[3], [1, 0])
