"""Stages: what decoding, preparing and the network take alone, on all cores, over plain libraries on the same photos.

Decoding over a bare Pillow; preparing by
timm's own transform; the network by runtime and precision, over torch in fp32 with the whole batch at once. MobileNetV2
with its published weights, photos as they are and enlarged to what cameras make. Needs PGIMGSEARCH_TEST_DATA.
"""

import io
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.end_to_end import DATA
from benchmarks.harness import report, sized
from pgimgsearch.models import lookup
from pgimgsearch.models.backends import backend_module
from pgimgsearch.models.encoder import Encoder, Placement, unit
from pgimgsearch.models.load import load
from pgimgsearch.models.reference import Reference
from pgimgsearch.models.runtime.cpu_parallel import cores
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.sources.decode import decode, register_formats, turn_upright
from pgimgsearch.sources.folder import list_images

MODEL, PHOTOS, LARGE, ROUNDS, BATCH = "timm:mobilenetv2_100", sized(320), sized(80), 3, 32
WEIGHTS = DATA / "weights" / "mobilenetv2_100_backbone_timm.safetensors"
RUNS = [("torch", "fp32"), ("torch", "bf16"), ("onnx", "fp32")]  # int8 is for products of matrices
CAMERA = (4000, 3000)

Work = Callable[[], Any]


def main() -> dict[str, object]:
    """One kind of work after the other in turns; the ratio is the slowest of ours to its plain library."""
    register_formats()
    found = list_images(DATA / "clothing")
    photos = [path.read_bytes() for path in found[:: max(1, len(found) // PHOTOS)][:PHOTOS]]
    spec = lookup.resolve(MODEL, Checkpoint(str(WEIGHTS)))
    with ThreadPoolExecutor(cores()) as pool:
        ours = load(spec, Placement("cpu", "fp32"))
        rows = [*decoding(pool, photos), *decoding(pool, [camera(data) for data in photos[:LARGE]])]
        pictures = [decode(data)[0] for data in photos]
        timm = backend_module("timm").reference(spec)
        rows += preparing(pool, pictures, ours, timm)
        rows += networks([ours.prepare(picture) for picture in pictures], timm)
    ratio = max(row["over it"] for row in rows if row["what"].startswith("ours"))
    return report(
        "Stages: the time of our slowest stage over that of the plain library",
        rows,
        ratio,
        "at most 1.7, as ours hashes the pixels",
    )


def camera(data: bytes) -> bytes:
    """The photo as a camera would have made it."""
    large = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize(CAMERA, Image.Resampling.BICUBIC).save(large, "JPEG", quality=90)
    return large.getvalue()


def decoding(pool: ThreadPoolExecutor, data: list[bytes]) -> Iterable[dict[str, Any]]:
    """Ours hashes the pixels too, and applies profiles, orientation and transparency."""
    plain, own = in_turns(lambda: list(pool.map(bare, data)), lambda: list(pool.map(lambda one: decode(one)[0], data)))
    size = f"{len(data)} photos of {np.mean([bare(one).width * bare(one).height for one in data[:20]]) / 1e6:.1f} MP"
    yield row(f"ours: decoding, {size}", len(data), own, plain, "Pillow")


def bare(data: bytes) -> Image.Image:
    """What Pillow makes of a photo."""
    return turn_upright(Image.open(io.BytesIO(data))).convert("RGB")


def preparing(
    pool: ThreadPoolExecutor, pictures: list[Image.Image], ours: Encoder, timm: Reference
) -> Iterable[dict[str, Any]]:
    """Resizing, cropping and standardising."""
    plain, own = in_turns(
        lambda: list(pool.map(lambda picture: timm.pixels([picture]), pictures)),
        lambda: list(pool.map(ours.prepare, pictures)),
    )
    yield row("ours: preparing", len(pictures), own, plain, "timm's transform")


def networks(prepared: list[NDArray[Any]], timm: Reference) -> Iterable[dict[str, Any]]:
    """Passes of full batches, each runtime over the network as timm makes it."""
    spec = lookup.resolve(MODEL, Checkpoint(str(WEIGHTS)))
    loaded = {run: load(spec, Placement("cpu", run[1], run[0])) for run in RUNS}
    batches = [prepared[first : first + BATCH] for first in range(0, len(prepared), BATCH)]

    @torch.inference_mode()
    def plainly() -> Any:
        passes = [timm.embed(torch.from_numpy(np.stack(batch))) for batch in batches]
        return np.concatenate([next(iter(one.values())).numpy() for one in passes])

    def embed(run: tuple[str, str]) -> Any:
        return np.concatenate([next(iter(loaded[run].embed(batch).values())) for batch in batches])

    plain, *own = in_turns(plainly, *(lambda run=run: embed(run) for run in RUNS))
    true = unit(plainly())
    for run, seconds in zip(RUNS, own, strict=True):
        cosine = float((unit(np.asarray(embed(run), dtype=np.float32)) * true).sum(1).min())
        yield row(f"ours: {' '.join(run)}", len(prepared), seconds, plain, "timm, fp32") | {"least cosine": cosine}


def in_turns(*works: Work) -> list[float]:
    """The least seconds of each, after one turn to warm up."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS + 1):
        for one, seconds in zip(works, taken, strict=True):
            start = time.perf_counter()
            one()
            seconds.append(time.perf_counter() - start)
    return [min(seconds[1:]) for seconds in taken]


def row(what: str, number: int, seconds: float, plain: float, beside: str) -> dict[str, Any]:
    """Images a second, and the share of the time that the plain library takes."""
    return {"what": what, "images/s": number / seconds, "beside": beside, "its images/s": number / plain,
            "over it": seconds / plain}  # fmt: skip


if __name__ == "__main__":
    main()
