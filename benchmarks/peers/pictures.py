"""Peers that embed a folder of images with a CLIP checkpoint of the hub's layout: PEER FOLDER CHECKPOINT OUT.

Loads once; then, for each line on stdin, embeds the folder, saves the vectors in the order of the files' names to OUT,
and prints the seconds it took as JSON.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
BATCH = 32

import numpy as np  # noqa: E402


def sentence_transformers(checkpoint: str) -> Callable[[list[Path]], Any]:
    from PIL import Image
    from sentence_transformers import SentenceTransformer, models

    model = SentenceTransformer(modules=[models.CLIPModel(checkpoint)], device="cpu")
    return lambda files: model.encode([Image.open(file) for file in files], batch_size=BATCH)


def transformers_pipeline(checkpoint: str) -> Callable[[list[Path]], Any]:
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection, pipeline

    extract = pipeline(
        "image-feature-extraction", model=CLIPVisionModelWithProjection.from_pretrained(checkpoint), device="cpu",
        image_processor=AutoImageProcessor.from_pretrained(checkpoint),
    )  # fmt: skip
    return lambda files: np.concatenate(
        [np.asarray(one) for one in extract([str(file) for file in files], batch_size=BATCH, return_tensors=True)]
    )


def clip_retrieval(checkpoint: str) -> Callable[[list[Path]], Any]:
    from clip_retrieval.clip_inference.main import main as clip_inference

    def embed(files: list[Path]) -> Any:
        with tempfile.TemporaryDirectory() as out:
            clip_inference(
                input_dataset=str(files[0].parent), output_folder=out, clip_model=f"hf_clip:{checkpoint}",
                enable_text=False, num_prepro_workers=os.cpu_count(), batch_size=BATCH,
            )  # fmt: skip
            return np.load(next(Path(out, "img_emb").glob("*.npy")))

    return embed


def main(peer: str, folder: str, checkpoint: str, out: str) -> None:
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the libraries talk on stdout
    embed = globals()[peer](checkpoint)
    files = sorted(Path(folder).iterdir())
    with tempfile.TemporaryDirectory() as few:  # warms up, as ours is
        embed([Path(shutil.copy(file, few)) for file in files[:2]])
    for _ in sys.stdin:
        start = time.perf_counter()
        vectors = np.asarray(embed(files))
        seconds = time.perf_counter() - start
        np.save(out, vectors.astype(np.float32))
        print(json.dumps({"seconds": seconds}), file=told, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
