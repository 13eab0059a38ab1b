"""``clip-vs-dinov2``: the published comparison with the models that it names, here as tiny networks of random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from pgimgsearch.database.connection import Connection
from tests.models.tiny import TEXT, save, tiny
from tests.support import copy_set, independent_metrics
from tests.support.images import photo


@pytest.mark.slow
def test_the_published_comparison_runs_as_it_was_made(
    cli: Callable[..., Any], connection: Connection, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    _, processor, tokenizer = tiny("clip-vit-b-32")
    shape = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, "intermediate_size": 64}
    vision = shape | {"image_size": 64, "patch_size": 16, "projection_dim": 512}
    words = TEXT | {"vocab_size": 49408, "projection_dim": 512}
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=words, vision_config=vision, projection_dim=512))
    save(tmp_path / "clip", clip, processor, tokenizer)
    dinov2 = hf.Dinov2Model(hf.Dinov2Config(**shape, image_size=70, patch_size=14))
    save(tmp_path / "dinov2", dinov2, tiny("dinov2-base")[1], None)
    for name, folder in (("clip-vit-b-32", "clip"), ("dinov2-base", "dinov2")):
        assert cli("models", "add", name, "--weights", str(tmp_path / folder)).returncode == 0
    assert (
        cli("models", "add", "dinov2-base", "--output", "mean", "--weights", str(tmp_path / "dinov2")).returncode == 0
    )

    for seed in range(24):
        photo(tmp_path / "photos" / f"{seed:02}.png", seed=seed, size=(96, 96))
    folder = tmp_path / "disc21"
    files = sorted((tmp_path / "photos").iterdir())
    copy_set.make(folder, files, references=12, matched=6, unmatched=8, background=4, seed=3)
    done = cli("--json", "evaluate", str(folder), "--protocol", "clip-vs-dinov2", "--limit-references", "10")
    assert done.returncode == 0, done.stderr
    models = {model["model"]: model for model in json.loads(done.stdout)["models"]}
    assert {name: model["published"] for name, model in models.items()} == {
        "clip-vit-b-32": {"r@1": 0.2845}, "dinov2-base@mean": {"r@1": 0.64}, "dinov2-base": {}}  # fmt: skip
    truth = (folder / "ground_truth.csv").read_text()
    for path in sorted((folder / "references").iterdir())[10:]:
        truth = truth.replace(path.stem, "")
        path.unlink()
    (folder / "ground_truth.csv").write_text(truth)
    for name, model in models.items():
        known = independent_metrics.vectors(connection, name, "disc21")
        expected, _ = independent_metrics.copy_detection(known, folder, bits=False)
        assert {figure: own["value"] for figure, own in model["figures"].items()} == pytest.approx(expected, abs=1e-6)

    # the outputs are what the comparison says: the mean of all tokens, and the CLS
    network = hf.Dinov2Model.from_pretrained(tmp_path / "dinov2").eval()
    prepare = hf.AutoImageProcessor.from_pretrained(tmp_path / "dinov2", use_fast=False)
    path = sorted((folder / "queries").iterdir())[0]
    with torch.no_grad():
        tokens = network(**prepare(Image.open(path), return_tensors="pt")).last_hidden_state[0].numpy()
    for name, vector in (("dinov2-base@mean", tokens.mean(0)), ("dinov2-base", tokens[0])):
        stored = np.array(independent_metrics.vectors(connection, name, "disc21")[f"queries/{path.name}"])
        assert stored @ vector / np.linalg.norm(vector) == pytest.approx(1, abs=2e-3)
