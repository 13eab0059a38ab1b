"""The protocols: what each asks, where it comes from, and which options it takes."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

# Fields of a request that a protocol looks at.
PICTURES = ("data", "collection", "filter", "limit")
COPIES = (
    "data", "collection", "truth", "references", "queries", "background", "limit_references", "score_norm", "whiten",
)  # fmt: skip
TEXTS = (*PICTURES, "sample", "key", "min_images", "template", "captions", "split")


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way to ask, its figures, those it has of classes (``--key``), and what is published: (model, figure) -> value.

    ``prepare`` names the function that does it, which is imported when it is wanted: a table must be quick to read.
    """

    name: str
    what: str
    source: str
    figures: tuple[str, ...]
    prepare: str
    options: tuple[str, ...] = PICTURES
    models: tuple[str, ...] = ("default",)
    published: dict[tuple[str, str], float] = field(default_factory=dict)
    of_classes: tuple[str, ...] = ()

    def load(self) -> Any:
        """The function: of a Context, to what evaluates a model."""
        module, _, function = self.prepare.partition(".")
        return getattr(import_module(f"pgimgsearch.evaluation.{module}"), function)


COPY_FIGURES = ("r@1", "r@3", "micro-ap", "r@p90")
PROTOCOLS = (
    Protocol(
        "copy-detection", "edited queries find their reference, others none; folders and ground truth as in DISC21",
        "Douze et al. 2021, arXiv:2106.09672", COPY_FIGURES, "copy_detection.copies", COPIES,
    ),
    Protocol(
        "clip-vs-dinov2", "the same of CLIP's projection, the mean of DINOv2's tokens, and its CLS",
        "a published comparison on 150,000 references and 1,448 queries with a match: top-1 28.45% and 64%",
        COPY_FIGURES, "copy_detection.copies", COPIES, ("clip-vit-b-32", "dinov2-base@mean", "dinov2-base"),
        {("clip-vit-b-32", "r@1"): 0.2845, ("dinov2-base@mean", "r@1"): 0.64},
    ),
    Protocol(
        "instances", "an image finds the others of its group",
        "mAP: Philbin et al. 2007; R@k: Song et al. 2016, arXiv:1511.06452", ("map", "r@1", "r@5", "r@10"),
        "labelled.instances", (*PICTURES, "sample", "key", "min_images"),
    ),
    Protocol(
        "classes", "an image finds others of its class, and 20 weighted neighbours tell it",
        "kNN: Wu et al. 2018, arXiv:1805.01978, with the temperature 0.07", ("p@1", "p@5", "p@10", "knn"),
        "labelled.classes", (*PICTURES, "sample", "key", "min_images"),
    ),
    Protocol(
        "text-to-image", "captions, or names of classes, find their images",
        "Karpathy and Fei-Fei 2015, arXiv:1412.2306", ("r@1", "r@5", "r@10"),
        "caption_protocols.text_to_image", TEXTS, ("text",), of_classes=("p@1", "p@5", "p@10"),
    ),
    Protocol(
        "image-to-text", "images find their captions", "Karpathy and Fei-Fei 2015, arXiv:1412.2306",
        ("r@1", "r@5", "r@10"), "caption_protocols.image_to_text",
        (*PICTURES, "sample", "template", "captions", "split"),
        ("text",),
    ),
    Protocol(
        "zero-shot", "the class of an image is told by its name", "Radford et al. 2021, arXiv:2103.00020, section 3.1",
        ("top-1", "top-5"), "caption_protocols.zero_shot",
        (*PICTURES, "sample", "key", "min_images", "template"), ("text",),
    ),
    Protocol(
        "duplicates", "pairs above the model's threshold are the known ones",
        "pairwise precision, recall and F1, as in imagededup's evaluation",
        ("precision", "recall", "f1", "ap", "best-f1"),
        "pairs.duplicates", (*PICTURES, "truth"), ("duplicates",),
    ),
    Protocol(
        "index", "the index finds the true nearest neighbours", "Aumüller et al. 2018, arXiv:1807.05614",
        ("recall@K",), "index_recall.index", ("sample", "k"),
    ),
)  # fmt: skip
BY_NAME = {protocol.name: protocol for protocol in PROTOCOLS}


FIGURES = {
    "r@1": "the share of questions whose first answer is right",
    "r@3": "the share with a right answer among the first three",
    "r@5": "the share with a right answer among the first five",
    "r@10": "the share with a right answer among the first ten",
    "top-1": "the share of images whose class comes first",
    "top-5": "the share of images whose class is among the first five",
    "p@1": "the share of right ones as first answers",
    "p@5": "the share of right ones among the first five answers",
    "p@10": "the share of right ones among the first ten answers",
    "knn": "the share of images whose 20 nearest, weighed by similarity, vote for their class",
    "map": "the mean over questions of the precision at each right answer",
    "micro-ap": "the same over all predictions of all queries at once, so one threshold must do for all",
    "r@p90": "the share of matches found by the lowest threshold whose predictions are right nine times of ten",
    "precision": "the share of known pairs among those that reach the model's threshold",
    "recall": "the share of known pairs that reach it",
    "f1": "the harmonic mean of both",
    "ap": "the precision averaged over all thresholds",
    "best-f1": "f1 at the threshold that is best here, so a little too good",
    "threshold": "the model's own, near",
    "best-threshold": "the similarity from which on f1 is highest here",
    "reported-pairs": "how many pairs reach the model's threshold",
    "ef_search": "how far the index looks, as stored with the model",
    "index_ms": "the median milliseconds of those queries",
    "recall@K": "the share of the K true neighbours that the index finds, by distance",
}
