"""The stage that the others wait for is named, with what makes it faster."""

import pytest

from pgimgsearch.ingest.bottleneck import find_bottleneck
from pgimgsearch.ingest.stopwatch import Stage


@pytest.mark.parametrize(
    ("stages", "workers", "device", "stage", "share", "advice"),
    [
        ({"decode": 30.0, "embed clip": 95.0, "write": 3.0}, 2, "cpu", "embed", 0.95, "int8"),
        ({"decode": 30.0, "embed clip": 190.0, "write": 3.0}, 2, "cuda", "embed", 0.95, "GPU"),
        ({"decode": 390.0, "embed clip": 40.0, "write": 3.0}, 4, "cuda", "decode", 0.975, "--workers 8"),
        ({"decode": 780.0, "embed clip": 40.0, "write": 3.0}, 8, "cuda", "decode", 0.975, "more cores"),
        ({"read": 380.0, "decode": 80.0, "embed clip": 40.0}, 4, "cpu", "read", 0.95, "--workers 8"),
        ({"decode": 30.0, "embed clip": 40.0, "write": 90.0}, 2, "cuda", "write", 0.9, "--shadow-table"),
        ({"decode": 30.0, "embed clip": 92.0, "embed dino": 96.0}, 2, "cuda", "embed", 0.94, "GPU"),
        ({"scan": 97.0, "decode": 30.0, "embed clip": 46.0}, 2, "cuda", "scan", 0.97, "store"),
    ],
)
def test_the_busiest_stage_binds(
    stages: dict[str, float], workers: int, device: str, stage: str, share: float, advice: str
) -> None:
    timed = {name: Stage(seconds, 1000) for name, seconds in stages.items()}
    bound = find_bottleneck(timed, 100.0, workers, 8, device, ["int8"])
    assert bound is not None
    assert (bound.stage, bound.share) == (stage, pytest.approx(share))
    assert advice in bound.advice


def test_nothing_binds_an_idle_or_a_short_run() -> None:
    assert find_bottleneck({}, 1.0, 2, 2, "cpu") is None
    assert find_bottleneck({"decode": Stage(10.0, 1000)}, 100.0, 2, 2, "cpu") is None
    assert find_bottleneck({"decode": Stage(100.0, 10)}, 10.0, 2, 2, "cpu") is None
