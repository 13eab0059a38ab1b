"""Which stage of a run the others waited for, and what would make that one faster."""

from collections.abc import Mapping
from dataclasses import dataclass

from pgimgsearch.ingest.stopwatch import Stage
from pgimgsearch.models.runtime.cpu_parallel import passes

POOLED = {"read", "decode"}  # these run in all workers, the others one at a time
TOGETHER = {"embed": "embed", "compare": "write"}  # first word of stages that take turns in one thread -> its name
ENOUGH = 64  # pictures, below which the start is most of a run
LIGHT = 0.5  # of the time: less busy than that, no stage binds


@dataclass(frozen=True, slots=True)
class Binding:
    """The busiest stage: its share of the time that it could have worked, and what to change."""

    stage: str
    share: float
    advice: str


def binding(stages: Mapping[str, Stage], seconds: float, workers: int, cores: int, device: str) -> Binding | None:
    """The stage that binds a run of ``seconds`` with a network on ``device``; None where none does, or few were new."""
    shares: dict[str, float] = {}
    for name, stage in stages.items():
        if stage.pictures >= ENOUGH:
            thread = TOGETHER.get(name.partition(" ")[0], name)
            at_once = workers if name in POOLED else passes(device) if thread == "embed" else 1
            shares[thread] = shares.get(thread, 0.0) + stage.seconds / seconds / at_once
    busiest = max(shares, key=lambda stage: shares[stage], default="")
    if shares.get(busiest, 0.0) < LIGHT:
        return None
    return Binding(busiest, min(shares[busiest], 1.0), _advice(busiest, workers, cores, device))


def _advice(stage: str, workers: int, cores: int, device: str) -> str:
    if stage == "embed":
        if device != "cpu":
            return "another GPU, --dtype bf16 or fp16, or a lighter model"
        return (
            "--runtime onnx --dtype int8, --dtype bf16 on a CPU with AMX, a GPU, or a lighter model "
            "(docs/scaling.md has the figures)"
        )
    if stage in POOLED and workers < cores:
        return f"--workers {cores}"
    if stage == "decode":
        return "more cores"
    if stage == "scan":
        return "a faster disk or store: listing or reading the source takes long; for shards, --engine ray"
    if stage == "read":
        return "a faster disk or network, or more --workers, as most of them wait"
    return "--aside, which loads beside the live index and builds it anew, or a faster server"
