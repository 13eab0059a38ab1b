"""What ``ingest`` reports while it runs and when it is done."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgimgsearch.cli.terminal import Terminal
from pgimgsearch.reporter import Reporter

if TYPE_CHECKING:
    from pgimgsearch.embeddings.deferred_models import DeferredModels
    from pgimgsearch.embeddings.loaded_model import LoadedModel
    from pgimgsearch.ingest.run import Report

LONG = 600  # seconds left from which a faster way is worth a message
MIN_FILES, MIN_SECONDS = 64, 10  # from which the time left can be estimated


def with_estimate(models: "DeferredModels", total: int | None, reporter: Reporter) -> Reporter:
    """A reporter that says once when a CPU has long to go, and names a lighter model."""
    start, said = time.monotonic(), False
    position, slowest = max(enumerate(models.stored), key=lambda one: one[1].dim)
    lighter = "clip-vit-b-32" if slowest.has_text else "resnet50"

    def progress(done: int, expected: int | None) -> None:
        nonlocal said
        reporter.progress(done, expected)
        elapsed = time.monotonic() - start
        left = elapsed / done * (total - done) if total and done >= MIN_FILES and elapsed > MIN_SECONDS else 0
        if not said and left > LONG and models.loaded and models.loaded[position].encoder.device == "cpu":
            said = True
            reporter.say(f"about {left / 3600:.1f} h to go on this CPU; a GPU or a lighter model ({lighter}) is faster")

    return Reporter(reporter.say, progress)


OUTCOMES = {
    "swapped": "{0}: the shadow table was swapped in, with its index",
    "built": "index built: {0}",
    "busy": "{0}: another session holds its table or index, and completes the load",
    "missing": "{0} misses most of the stored images, so no index was built: pgimgsearch models fill {0}; "
    "or build it now: pgimgsearch index build {0}",
    "not owner": "no index yet; ask the owner of the database to run: pgimgsearch index build {0}",
    "unable": "the index that is set for {0} cannot be built here; this says why: pgimgsearch index build {0}",
    "refused": "an index of {0} would miss neighbours, so searches stay exact; for one with a lower recall: "
    "pgimgsearch index build {0} --recall 0.9",
}


def complete_loads(terminal: Terminal, url: str, names: list[str]) -> None:
    """Swap shadow tables in and build missing indexes, and say what was done."""
    from pgimgsearch.indexing.after_load import after_load

    with terminal.report("index") as reporter:
        outcomes = after_load(url, names, remote=bool(terminal.settings.db), reporter=reporter)
    for name, outcome in outcomes.items():
        terminal.notify(OUTCOMES[outcome].format(name))


def show_report(terminal: Terminal, report: "Report") -> None:
    """The counts on stdout, the rest on stderr."""
    rows = [{"collection": report.collection, "model": name, **counts} for name, counts in report.counts.items()]
    terminal.show(rows, ["collection", "model", "scanned", "embedded", "reused", "unchanged", "skipped", "failed"])
    embedded = max((counts["embedded"] for counts in report.counts.values()), default=0)
    rate = f", {embedded / report.seconds:.1f} embedded a second" if embedded and report.stages else ""
    terminal.notify(f"{report.status} in {report.seconds:.1f} s{rate}")
    if report.stages:
        ordered = sorted(report.stages.items(), key=lambda stage: -stage[1].seconds)
        stages = (f"{name} {stage.seconds:.1f} ({stage.images})" for name, stage in ordered)
        terminal.notify("busy seconds (images): " + ", ".join(stages))
    for said in report.left_out:
        terminal.notify(said)
    if report.pruned:
        terminal.notify(f"{report.pruned} images were deleted")
    if any(counts["failed"] or counts["skipped"] for counts in report.counts.values()) and report.status != "dry run":
        terminal.notify("why files failed or were skipped: select * from imgsearch.ingest_failure")


def show_bottleneck(terminal: Terminal, report: "Report", workers: int, models: "Sequence[LoadedModel]") -> None:
    """The stage that the others waited for, and what makes it faster."""
    from pgimgsearch.ingest.bottleneck import find_bottleneck
    from pgimgsearch.ingest.stopwatch import Stage
    from pgimgsearch.models.runtime.cpu_parallel import cores, passes

    device = max((model.encoder.device for model in models), key=passes)  # that of the heavy ones, if any
    slowest = max(models, key=lambda model: report.stages.get(f"embed {model.stored.name}", Stage()).seconds)
    faster = slowest.encoder.faster_dtypes
    if found := find_bottleneck(report.stages, report.seconds, workers, cores(), device, faster):
        terminal.notify(
            f"{found.stage} is the bottleneck, busy {found.share:.0%} of the time; faster with: {found.advice}"
        )
