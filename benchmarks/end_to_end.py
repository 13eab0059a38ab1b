"""End to end: photos on disk to rows in Postgres, over the bound of the same cores, beside peers on the same weights.

The bound is what the parts take alone: decoding and preparing in as many threads as there are cores, then the network in
full batches. Peers only embed; ours plans, hashes, writes and counts as well. Weights are random ones of the real size.
Every system is loaded and warm; one after the other embeds the same photos, in turns. Needs PGIMGSEARCH_TEST_DATA, and
PyPI for the peers. ``python -m benchmarks.end_to_end [--quick]``.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import QUICK, fresh_database, kept_peer, peer_python, report
from pgimgsearch.database.connection import Connection
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.ingest import run
from pgimgsearch.models import lookup
from pgimgsearch.models.encoder import Placement, unit
from pgimgsearch.models.runtime.cpu_parallel import cores
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.reporter import SILENT
from pgimgsearch.sources.decode import decode, register_formats
from pgimgsearch.sources.folder import files_source, list_images
from pgimgsearch.sources.source import Source
from tests.support import checkpoints

DATA = Path(os.environ.get("PGIMGSEARCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
MODEL, PHOTOS, ROUNDS = "clip-vit-b-32", 256, 3
RUNS = {
    "by default": Placement("cpu"), "on torch": Placement("cpu", "fp32", "torch"),
    "in bf16": Placement("cpu", "bf16", "torch"), "in int8": Placement("cpu", "int8", "onnx"),
}  # fmt: skip
HUB = ("sentence-transformers[image]", "torch==2.15.0", "torchvision", "pillow")
PEERS = {
    "sentence_transformers": ("sentence_transformers", HUB),
    "transformers_pipeline": ("sentence_transformers", HUB),
    "clip_retrieval": ("clip_retrieval", ("clip-retrieval", "torch==2.9.1", "torchvision==0.24.1", "setuptools<70")),
}


@dataclass(slots=True)
class Ours:
    """One runtime and precision of ours, loaded, with a database of its own."""

    model: LoadedModel
    url: str
    connection: Connection
    source: Source
    bounds: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    report: run.Report | None = None

    def turn(self, data: list[bytes]) -> None:
        """The bound and a whole ingest into empty tables, one after the other."""
        self.bounds.append(bound(self.model, data))
        self.connection.execute("truncate imgsearch.content cascade")
        self.report = run.ingest(self.url, self.source, [self.model], run.Options())
        self.taken.append(self.report.seconds)

    def vectors(self) -> NDArray[np.float32]:
        """As they are stored, in the order of the files' names."""
        rows = self.connection.execute(
            f"select e.embedding::text from imgsearch.image i join imgsearch.{self.model.stored.table_name} e "  # type: ignore[call-overload]
            "using (content_id) order by i.path"
        ).fetchall()
        return np.array([np.fromstring(row[0][1:-1], sep=",") for row in rows], dtype=np.float32)


def bound(model: LoadedModel, data: list[bytes]) -> float:
    """Seconds for these images, each part alone on all cores."""
    encoder, size = model.encoder, model.batch_size
    with ThreadPoolExecutor(cores()) as pool:
        start = time.perf_counter()
        prepared = list(pool.map(lambda one: encoder.prepare(decode(one)[0]), data))
        seconds = time.perf_counter() - start
    start = time.perf_counter()
    for first in range(0, len(prepared), size):
        encoder.embed(prepared[first : first + size])
    return seconds + time.perf_counter() - start


def photos(folder: Path, number: int) -> list[Path]:
    """So many photos of clothing/ in one folder, every class among them."""
    found = list_images(DATA / "clothing")
    chosen = found[:: len(found) // number][:number]
    return [Path(shutil.copy(path, folder / f"{place:05}{path.suffix}")) for place, path in enumerate(chosen)]


def main() -> dict[str, object]:
    """Measure in turns; the ratio is that of fp32 to its bound."""
    number, rounds = (64, 1) if QUICK else (PHOTOS, ROUNDS)
    runs = {how: RUNS[how] for how in ("by default", "in int8")} if QUICK else RUNS
    register_formats()
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder, checkpoint = Path(name) / "photos", Path(name) / "weights"
        folder.mkdir()
        files = photos(folder, number)
        weights = checkpoints.write_checkpoint(lookup.resolve(MODEL), checkpoint)
        ours = {how: _ours(stack, placement, weights, folder, files) for how, placement in runs.items()}
        peers = {} if QUICK else _peers(stack, folder, weights, Path(name))
        times: dict[str, list[float]] = {peer: [] for peer in peers}
        data = [file.read_bytes() for file in files]
        for _ in range(rounds):
            for one in ours.values():
                one.turn(data)
            for peer, work in peers.items():
                times[peer].append(work()["seconds"])
        ours_vectors = unit(ours["by default"].vectors())
        rows = [_row(how, one, number, ours_vectors) for how, one in ours.items()]
        rows += [_peer_row(peer, taken, number, ours_vectors, Path(name)) for peer, taken in times.items()]
    best = max((row["images/s"] for row in rows if row["system"] in PEERS), default=None)
    for row in rows if best else []:
        row["over the best peer"] = row["images/s"] / best
    return report(
        "End to end: images per second from photo to row over what the cores allow",
        rows,
        rows[0]["over its bound"],
        "at least 0.93; over the best peer at least 1.25",
    )


def _ours(stack: ExitStack, placement: Placement, weights: str, folder: Path, files: list[Path]) -> Ours:
    url, connection = stack.enter_context(fresh_database())
    source = files_source(folder, files)
    request = ModelRequest([MODEL], checkpoint=Checkpoint(weights), placement=placement)
    (model,) = open_models(url, request, [source], reporter=SILENT)
    return Ours(model, url, connection, source)


def _peers(stack: ExitStack, folder: Path, weights: str, out: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Those that can be installed; the others are named."""
    found = {}
    for peer, (environment, requirements) in PEERS.items():
        try:
            python = peer_python(environment, *requirements)
            work = kept_peer(python, "pictures.py", peer, str(folder), weights, str(out / f"{peer}.npy"))
            found[peer] = stack.enter_context(work)
        except subprocess.CalledProcessError as error:
            print(f"{peer} could not be installed: {error}", file=sys.stderr)
    return found


def _row(how: str, one: Ours, number: int, fp32: NDArray[np.float32]) -> dict[str, Any]:
    assert one.report is not None
    ratios = [limit / taken for limit, taken in zip(one.bounds, one.taken, strict=True)]
    stages = ", ".join(f"{name.split()[0]} {stage.seconds:.1f}" for name, stage in one.report.stages.items())
    cosine = float((unit(one.vectors()) * fp32).sum(1).min())
    return {"system": f"ours {how}", "images/s": number / float(np.median(one.taken)),
            "over its bound": float(np.median(ratios)), "least cosine": cosine, "busy seconds": stages}  # fmt: skip


def _peer_row(peer: str, taken: list[float], number: int, fp32: NDArray[np.float32], out: Path) -> dict[str, Any]:
    theirs = unit(np.load(out / f"{peer}.npy").reshape(number, -1))
    return {"system": peer, "images/s": number / float(np.median(taken)), "over its bound": None,
            "least cosine": float((theirs * fp32).sum(1).min()), "busy seconds": ""}  # fmt: skip


if __name__ == "__main__":
    main()
