"""Models: images a second and peak memory of each, by runtime and precision, with random weights of the real size.

``python -m benchmarks.models [--device cuda] [NAME ...]``; every figure comes from a process of its own, on drawn
images that are decoded and prepared already.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS
from pgimgsearch.models.backends import backends
from pgimgsearch.models.load import load

NAMES = [
    "pdq", "palette", "mobilenetv2", "resnet50", "efficientnet-b4", "efficientnet-b7", "sscd-disc-mixup", "vit-s-16",
    "vit-b-16", "vit-l-16", "dinov2-small", "dinov2-base", "dinov2-large", "dinov3-convnext-tiny", "dinov3-vits16",
    "dinov3-vitb16", "dinov3", "clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "openclip-vit-b-32-laion2b",
    "siglip2-b-16-224", "siglip2-so400m-14-384", "imagebind-huge",
]  # fmt: skip
CPU_RUNS = [("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8")]
GPU_RUNS = [("torch", "fp32"), ("torch", "bf16"), ("torch", "fp16")]
SECONDS = 4.0
LARGE = 700  # millions of parameters from which an export for a CPU is left out


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or NAMES:
            rows += _measure(name, options.device, Path(folder))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"models_{options.device}.json").write_text(json.dumps(rows, indent=1))
    print(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line a model, a pair of columns a run."""
    runs = list(dict.fromkeys(run for row in rows for run in [row["run"]]))
    lines = [
        "| model | batch | " + " | ".join(f"{run}: images/s | GB" for run in runs) + " |",
        "|---|---|" + "---|---|" * len(runs),
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        found = {row["run"]: row for row in rows if row["model"] == name}
        cells = [
            f"{found[run]['images_s']:.3g} | {found[run]['peak_gb']:.1f}" if run in found else "- | -" for run in runs
        ]
        lines.append(f"| `{name}` | {next(iter(found.values()))['batch']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _measure(name: str, device: str, folder: Path) -> list[dict[str, Any]]:
    """One model in every run; each twice where an export has to be made first, which is not measured."""
    from pgimgsearch.models import lookup

    spec = lookup.resolve(name)
    weights = ""
    runs = [("numpy", "fp32")]
    if backends()[spec.backend].on_torch:
        runs = CPU_RUNS if device == "cpu" else GPU_RUNS
        if spec.parameters > LARGE:
            runs = [run for run in runs if run[0] == "torch"]
        made = [sys.executable, "-m", "benchmarks.models", "--write", name, str(folder / name)]
        weights = subprocess.run(made, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
    rows = []
    for runtime, dtype in runs:
        command = [sys.executable, "-m", "benchmarks.models", "--child", name, weights, device, runtime, dtype]
        environment = os.environ | {"PGIMGSEARCH_CACHE": str(folder / "cache")}
        for _ in range(2 if runtime == "onnx" else 1):
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            print(f"{name} {runtime} {dtype}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr)
    subprocess.run(["rm", "-rf", str(folder / name), str(folder / "cache")], check=True)
    return rows


def _child(name: str, weights: str, device: str, runtime: str, dtype: str) -> dict[str, Any]:
    from pgimgsearch.models import canary, lookup
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint

    spec = lookup.resolve(name, Checkpoint(weights or None))
    loaded = load(spec, Placement(device, dtype, "onnx" if runtime == "onnx" else "torch"))
    batch = min(spec.batch_size, 8) if device == "cpu" else spec.batch_size
    pictures = canary.images()
    if runtime == "numpy":  # the work of these is done in ``prepare``
        rate = _rate(lambda: [loaded.prepare(picture) for picture in pictures], len(pictures))
    else:
        prepared = [loaded.prepare(pictures[number % 4]) for number in range(batch)]
        rate = _rate(lambda: loaded.embed(prepared), batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if device != "cpu":
        import torch

        peak = torch.cuda.max_memory_allocated() / 1e9
    return {"model": name, "run": f"{runtime} {dtype}", "batch": batch, "images_s": rate, "peak_gb": peak}


def _rate(work: Any, pictures: int) -> float:
    work()
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return pictures / float(np.median(times))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_child(*sys.argv[2:])))
    elif sys.argv[1:2] == ["--write"]:
        from pgimgsearch.models import lookup
        from tests.support import checkpoints

        print(checkpoints.write_checkpoint(lookup.resolve(sys.argv[2]), Path(sys.argv[3])))
    else:
        main()
