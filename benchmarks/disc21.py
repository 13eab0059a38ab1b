"""Copy detection on a set shaped as DISC21: which of three models finds edited photos, and what normalisation adds.

Reads the photos of PGIMGSEARCH_TEST_DATA. A query is a photo under one to three edits, or pasted small onto another
photo; half of the queries are of photos that are no references. ``python -m benchmarks.disc21 DIR`` only writes the set.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import fresh_database, report
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.evaluation.context import EvaluationRequest
from pgimgsearch.evaluation.protocols import BY_NAME
from pgimgsearch.evaluation.run import evaluate
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.reporter import Reporter
from tests.support.copy_set import make, photos

DATA = Path(os.environ.get("PGIMGSEARCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def main() -> None:
    """Write the set, evaluate three models plainly, and one with normalisation."""
    with TemporaryDirectory() as name, fresh_database() as (url, connection):
        folder = Path(name) / "disc21"
        make(folder, photos(DATA), references=1600, matched=300, unmatched=300, background=600, seed=21)
        weights = DATA / "weights"
        mobilenet = Checkpoint(str(weights / "mobilenetv2_100_backbone_timm.safetensors"))
        names = [
            open_model(connection, "timm:mobilenetv2_100", mobilenet).stored.name,
            open_model(connection, f"open_clip:{weights / 'openclip-mbv2-tiny'}").stored.name,
            open_model(connection, "pdq").stored.name,
        ]
        protocol = BY_NAME["copy-detection"]
        requests = {
            "plain": EvaluationRequest(models=names, data=folder),
            "score norm": EvaluationRequest(models=names, data=folder, score_norm=2),
            "score norm, whitened": EvaluationRequest(models=names[:2], data=folder, score_norm=2, whiten=128),
        }
        rows = []
        for how, request in requests.items():
            found = evaluate(url, protocol, request, device="cpu", trust=False, reporter=Reporter(print))
            for line in found.notes.told():
                print(line)
            rows += [
                {"model": result.model, "how": how}
                | {name: figure.value for name, figure in result.figures.items()}
                | {f"{name} interval": [figure.low, figure.high] for name, figure in result.figures.items()}
                for result in found.results
            ]
        micro = {(row["model"], row["how"]): row["micro-ap"] for row in rows}
        gain = micro[names[0], "score norm, whitened"] / micro[names[0], "plain"]
        report("Copy detection: micro-AP of MobileNetV2, normalised and whitened over plain", rows, gain, "above 1")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sizes = {"references": 1600, "matched": 300, "unmatched": 300, "background": 600}
        make(Path(sys.argv[1]), photos(DATA), **sizes, seed=21)
    else:
        main()
