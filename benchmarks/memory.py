"""Memory: the resident set of an ingest after 20,000 images over that after 2,000, in one run."""

import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import fresh_database, report
from pgimgsearch.database.connection import connect
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.ingest import run
from pgimgsearch.reporter import Reporter
from pgimgsearch.sources.folder import folder_source

FILES, EARLY = 20_000, 2_000


def make_pictures(folder: Path) -> None:
    """So many small, different images."""
    rng = np.random.default_rng(0)
    for number in range(FILES):
        path = folder / f"{number // 1000:02}" / f"{number:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((320, 240), Image.Resampling.BILINEAR).save(path, quality=80)


def resident_megabytes() -> float:
    """What this process holds now (Linux), else its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main() -> dict[str, object]:
    """Palette and pdq, so that decoding, staging and bookkeeping are what is measured."""
    seen: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name, fresh_database() as (url, _):
        folder = Path(name)
        make_pictures(folder)
        with connect(url) as connection:
            models = [open_model(connection, m) for m in ("palette", "pdq")]

        def note(done: int, _: int | None) -> None:
            seen[done] = resident_megabytes()

        run.ingest(url, folder_source(folder), models, run.Options(), reporter=Reporter(progress=note))
    early = max(megabytes for done, megabytes in seen.items() if done <= EARLY)
    late = max(megabytes for done, megabytes in seen.items() if done > FILES - EARLY)
    row = {f"at {EARLY} images, MB": early, f"at {FILES} images, MB": late}
    return report("Memory: resident set at 20,000 images over 2,000", [row], late / early, "at most 1.10")


if __name__ == "__main__":
    main()
