"""Profile: where an ingest spends its time, by the innermost frame of samples of all its threads that run.

py-spy, from PyPI, in an environment of its own. Samples whose innermost frame is ours count as ours, with what is called from there in C
(hashing, NumPy); the others belong to the library, and to the stage that called it. ``python -m benchmarks.profile [MODEL ...]``.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.end_to_end import photos
from benchmarks.harness import fresh_database, peer_python, report, sized
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.ingest import run
from pgimgsearch.models import lookup
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.reporter import SILENT
from pgimgsearch.sources.decode import register_formats
from pgimgsearch.sources.folder import folder_source
from tests.support import checkpoints

MODELS, PHOTOS, RATE = ("clip-vit-b-32", "mobilenetv2"), sized(640), 200
FRAME = re.compile(r"(?P<function>[^;]+) \((?P<file>[^;()]+?)(?::\d+)?\)$")
# what an ingest is there for: the bound of end_to_end, which libraries do
WORK = {"sources/decode.py": "decoding", "models/preprocess.py": "preparing", "models/runtime/cpu_parallel.py": "network",
        "models/runtime/torch_encoder.py": "network", "models/runtime/torch_thread.py": "network",
        "models/hf_processor.py": "preparing"}  # fmt: skip
WAITING = {"threading.py", "queue.py", "selectors.py", "concurrent/futures/thread.py"}  # innermost; they do not run
LEAST = 0.002


def main() -> dict[str, object]:
    """The ratio is the largest share of a part of ours that is not the work itself."""
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        folder.mkdir()
        photos(folder, PHOTOS)
        for model in [name for name in sys.argv[1:] if not name.startswith("-")] or MODELS:
            weights = checkpoints.write_checkpoint(lookup.resolve(model), Path(name) / model)
            for part, share in shares(sampled(model, weights, folder)).items():
                if share >= LEAST:
                    rows.append({"model": model, "part": part, "share": share})
    worst = max((row["share"] for row in rows if row["part"].startswith("ours:")), default=0.0)
    return report("Profile: the largest share of our own code in the samples of an ingest", rows, worst, "at most 0.05")


def sampled(model: str, weights: str, folder: Path) -> Counter[str]:
    """Stacks, innermost last, with how often they were seen."""
    spy = peer_python("py_spy", "py-spy").with_name("py-spy")
    out = folder.parent / "stacks"
    command = [sys.executable, "-m", "benchmarks.profile", "--ingest", model, weights, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        watching = subprocess.Popen(
            [spy, "record", "--pid", str(process.pid), "--rate", str(RATE), "--format", "raw", "--output", out,
             "--duration", "36000"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        process.stdin.write("\n")
        process.stdin.close()
        process.wait()
        watching.wait()
    found: Counter[str] = Counter()
    for line in out.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        found[stack] += int(count)
    return found


def shares(stacks: Counter[str]) -> dict[str, float]:
    """The share of each part of the samples, largest first."""
    parts: Counter[str] = Counter()
    for stack, count in stacks.items():
        innermost = FRAME.search(stack)
        if innermost is not None and innermost["file"] not in WAITING:
            parts[part_of(stack.split(";"))] += count
    return {part: count / sum(parts.values()) for part, count in parts.most_common()}


def part_of(frames: list[str]) -> str:
    """Who runs: a part of ours by file, or a library on behalf of a stage."""
    files = [found["file"] for frame in frames if (found := FRAME.search(frame))]
    ours = [file.partition("pgimgsearch/")[2] for file in files if "pgimgsearch/" in file]
    if not ours:
        return "python"
    stage = next((WORK[file] for file in reversed(ours) if file in WORK), None)
    if "pgimgsearch/" not in files[-1]:
        return f"{stage or ours[-1]}: {files[-1].partition('/')[0]}"
    return f"{stage}: {ours[-1]}" if stage in {"preparing", "network"} else f"ours: {ours[-1]}"


def ingest(model: str, weights: str, folder: str) -> None:
    """Load, say so, and ingest when told to."""
    register_formats()
    with fresh_database() as (url, _):
        source = folder_source(Path(folder))
        request = ModelRequest([model], checkpoint=Checkpoint(weights), placement=Placement("cpu", "fp32"))
        models = open_models(url, request, [source], reporter=SILENT)
        print(json.dumps("ready"), flush=True)
        sys.stdin.readline()
        run.ingest(url, source, models, run.Options())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ingest"]:
        ingest(*sys.argv[2:5])
    else:
        main()
