"""What ``ingest`` says while it runs and when it is done."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pgimgsearch.cli.terminal import Terminal

if TYPE_CHECKING:
    from pgimgsearch.embeddings.loaded_model import LoadedModel
    from pgimgsearch.ingest.run import Report

LONG = 600  # seconds to go after which one wants to know what would be faster
ENOUGH, ENOUGH_SECONDS = 64, 10  # files and seconds from which a pace can be told


def pace(
    terminal: Terminal, models: "list[LoadedModel]", total: int | None, bar: Callable[[int, int | None], None]
) -> Callable[[int], None]:
    """Move the bar; where a CPU has long to go, say so once and name a lighter model."""
    start, said = time.monotonic(), False
    slowest = max(models, key=lambda model: model.stored.dim)
    lighter = "clip-vit-b-32" if slowest.stored.has_text else "resnet50"

    def show(done: int) -> None:
        nonlocal said
        bar(done, None)
        gone = time.monotonic() - start
        left = gone / done * (total - done) if total and done >= ENOUGH and gone > ENOUGH_SECONDS else 0
        if not said and left > LONG and slowest.encoder.device == "cpu":
            said = True
            terminal.talk(f"about {left / 3600:.1f} h to go on this CPU; a GPU or a lighter model ({lighter}) helps")

    return show


BESIDE = "{0}: loading beside the live table, which answers meanwhile; searches see the new at the end"
INDEXED = {
    "swapped": "{0}: what was loaded beside its table is in place, with its index",
    "built": "index built: {0}",
    "busy": "{0}: another session is at its table or index, and sees to the rest",
    "lacking": "{0} lacks most of the stored images, and its index waits: pgimgsearch models fill {0}; "
    "or, as it is: pgimgsearch index build {0}",
    "left": "not indexed yet; ask the owner of the database to run: pgimgsearch index build {0}",
    "unable": "the index that is wished for {0} cannot be made here; this says why: pgimgsearch index build {0}",
    "refused": "an index of {0} would miss neighbours, so searches stay exact; for one that misses some: "
    "pgimgsearch index build {0} --recall 0.9",
}


def build_indexes(terminal: Terminal, url: str, names: list[str]) -> None:
    """What is left to do after the load, and what became of it."""
    from pgimgsearch.indexing.after_load import finish

    remote = bool(terminal.settings.db)
    with terminal.progress("index", None) as bar:
        built = finish(url, names, remote=remote, report=lambda _, done, total: bar(done, total))
    for name, what in built.items():
        terminal.talk(INDEXED[what].format(name))


def tell(terminal: Terminal, report: "Report") -> None:
    """The counts on stdout, the rest as talk."""
    rows = [{"collection": report.collection, "model": name, **counts} for name, counts in report.counts.items()]
    terminal.show(rows, ["collection", "model", "scanned", "embedded", "reused", "unchanged", "skipped", "failed"])
    embedded = max((counts["embedded"] for counts in report.counts.values()), default=0)
    rate = f", {embedded / report.seconds:.1f} embedded a second" if embedded and report.stages else ""
    terminal.talk(f"{report.status} in {report.seconds:.1f} s{rate}")
    if report.stages:
        ordered = sorted(report.stages.items(), key=lambda stage: -stage[1].seconds)
        told = (f"{name} {stage.seconds:.1f} ({stage.pictures})" for name, stage in ordered)
        terminal.talk("busy seconds (pictures): " + ", ".join(told))
    if report.left_out:
        terminal.talk(f"{report.left_out} files with other extensions were left out")
    if report.pruned:
        terminal.talk(f"{report.pruned} images removed, whose files are gone")
    if any(counts["failed"] or counts["skipped"] for counts in report.counts.values()) and report.status != "dry run":
        terminal.talk("why files failed or were skipped: select * from imgsearch.ingest_failure")


def tell_binding(terminal: Terminal, report: "Report", workers: int, models: "list[LoadedModel]") -> None:
    """Which stage the others waited for, and what makes it faster."""
    from pgimgsearch.ingest.bottleneck import binding
    from pgimgsearch.models.runtime import cpu_parallel as lanes

    device = max((model.encoder.device for model in models), key=lanes.passes)  # that of the heavy ones, if any
    if bound := binding(report.stages, report.seconds, workers, lanes.cores(), device):
        terminal.talk(f"{bound.stage} binds, busy {bound.share:.0%} of the time; faster with: {bound.advice}")
