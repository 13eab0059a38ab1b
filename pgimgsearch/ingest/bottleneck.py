"""The bottleneck of a run: which stage the others waited for, and what makes it faster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgimgsearch.ingest.stopwatch import Stage
from pgimgsearch.models.runtime.cpu_parallel import passes

POOLED = {"read", "decode"}  # run in all workers; the other stages run one at a time
TOGETHER = {"embed": "embed", "compare": "write"}  # first word of stages that share a thread -> its name
MIN_IMAGES = 64  # images, below which starting is most of a run
MIN_SHARE = 0.5  # of the time; below that, no stage is the bottleneck


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The busiest stage: the share of its time that it worked, and what to change."""

    stage: str
    share: float
    advice: str


def find_bottleneck(
    stages: Mapping[str, Stage], seconds: float, workers: int, cores: int, device: str, faster: Sequence[str] = ()
) -> Bottleneck | None:
    """The bottleneck of a run of ``seconds``, encoding on ``device``; None without one, or with few new images.

    ``faster`` are the precisions that would encode faster.
    """
    shares: dict[str, float] = {}
    for name, stage in stages.items():
        if stage.images >= MIN_IMAGES:
            thread = TOGETHER.get(name.partition(" ")[0], name)
            at_once = workers if name in POOLED else passes(device) if thread == "embed" else 1
            shares[thread] = shares.get(thread, 0.0) + stage.seconds / seconds / at_once
    busiest = max(shares, key=lambda stage: shares[stage], default="")
    if shares.get(busiest, 0.0) < MIN_SHARE:
        return None
    return Bottleneck(busiest, min(shares[busiest], 1.0), _advice(busiest, workers, cores, device, faster))


def _advice(stage: str, workers: int, cores: int, device: str, faster: Sequence[str]) -> str:
    if stage == "embed":
        if device != "cpu":
            return "another GPU, --dtype bf16 or fp16, or a lighter model"
        options = ", ".join([*(f"--dtype {dtype}" for dtype in faster), "a GPU"])
        return f"{options}, or a lighter model (docs/benchmarks.md has the figures)"
    if stage in POOLED and workers < cores:
        return f"--workers {cores}"
    if stage == "decode":
        return "more cores"
    if stage == "scan":
        return "a faster disk or object store, as listing or reading the source takes long; for shards, --engine ray"
    if stage == "read":
        return "a faster disk or network, or more --workers, as most of them are waiting"
    return "--shadow-table, which loads without the live index and rebuilds it, or a faster server"
