"""Texts and images: captions that find their images and the other way round, and classes told by words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pgimgsearch.database.models import StoredModel
from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.evaluation import captions, examples, metrics
from pgimgsearch.evaluation import labelled as grouped
from pgimgsearch.evaluation.captions import Caption
from pgimgsearch.evaluation.context import Context, Display, Evaluate, Outcome
from pgimgsearch.evaluation.images import StoredImage, labels, vectors
from pgimgsearch.evaluation.labelled import class_key
from pgimgsearch.evaluation.path_matching import Names
from pgimgsearch.evaluation.ranking import Columns, Ranked, Vectors, rank
from pgimgsearch.sources.folder import files_source, list_images

DEEPEST = 50
MOST_CAPTIONS = 20  # of an image, each of which is a question
RECALLS = {"r@1": 1, "r@5": 5, "r@10": 10}
AS_IT_IS, AS_A_PHOTO = "{}", "a photo of a {}"  # the second: Radford et al. 2021, section 3.1.4


@dataclass(frozen=True, slots=True)
class CaptionedImages:
    """Images, texts, and which belong together: (text, image) by their places, several times where said so."""

    pictures: Sequence[StoredImage]
    texts: Sequence[str]
    pairs: Sequence[tuple[int, int]]

    def by(self, side: int, count: int) -> list[Columns]:
        """For each text (0) or image (1) the places of the other side."""
        found: list[set[int]] = [set() for _ in range(count)]
        for pair in self.pairs:
            found[pair[side]].add(pair[1 - side])
        return [np.array(sorted(own), np.int64) for own in found]


def text_to_image(context: Context) -> Evaluate:
    """Find images by their captions, or by the names of their classes."""
    context.need_text()
    told = _captioned(context)
    every = told.by(0, len(told.texts))
    # a caption that is said five times asks five times
    asking = np.array(
        [text for text, _ in told.pairs] if context.request.key is None else range(len(told.texts)), np.int64
    )
    units = np.array([picture for _, picture in told.pairs], np.int64) if context.request.key is None else asking
    drawn = context.drawn(len(asking), len(told.pictures))
    asking, units = asking[drawn], np.unique(units[drawn], return_inverse=True)[1]
    right = [every[text] for text in asking.tolist()]

    def evaluate(model: StoredModel) -> Outcome:
        there = vectors(context.connection, model, told.pictures)
        texts = _embed(context, model, told.texts)
        ranked = rank(texts.take(asking), there, right, keep=DEEPEST, depth=DEEPEST, reporter=context.reporter)
        questions = [Display(told.texts[text]) for text in asking.tolist()]
        outcome = _outcome(ranked, questions, examples.display(told.pictures), right, RECALLS)
        precise = {f"p@{k}": metrics.mean(metrics.precisions(ranked, k)) for k in (1, 5, 10)}
        measures = {**outcome.measures, **(precise if context.request.key else {})}
        return replace(outcome, measures=measures, units=units)

    return evaluate


def image_to_text(context: Context) -> Evaluate:
    """Find the captions of images."""
    context.need_text()
    told = _captioned(context)
    asking = np.unique(np.array([picture for _, picture in told.pairs], np.int64))
    asking = asking[context.drawn(len(asking), len(told.texts))]
    every = told.by(1, len(told.pictures))
    right = [every[place] for place in asking.tolist()]

    def evaluate(model: StoredModel) -> Outcome:
        asked = vectors(context.connection, model, told.pictures).take(asking)
        texts = _embed(context, model, told.texts)
        ranked = rank(asked, texts, right, keep=DEEPEST, depth=DEEPEST, reporter=context.reporter)
        questions = examples.display([told.pictures[place] for place in asking.tolist()])
        return _outcome(ranked, questions, list(map(Display, told.texts)), right, RECALLS)

    return evaluate


def zero_shot(context: Context) -> Evaluate:
    """Tell the class of an image by its name in words."""
    context.need_text()
    found = context.pictures()
    labelled = grouped.label(context, found, labels(found, class_key(context), context.request.data), "class", least=1)
    names = sorted(set(labelled.labels))
    place = {name: number for number, name in enumerate(names)}
    asking = labelled.asking[context.drawn(len(labelled.asking), len(names))]
    right = [np.array([place[labelled.labels[number]]]) for number in asking.tolist()]

    def evaluate(model: StoredModel) -> Outcome:
        asked = vectors(context.connection, model, labelled.pictures).take(asking)
        texts = _embed(context, model, [words(name) for name in names], AS_A_PHOTO)
        ranked = rank(asked, texts, right, keep=DEEPEST, reporter=context.reporter)
        questions = examples.display([labelled.pictures[number] for number in asking.tolist()])
        return _outcome(ranked, questions, list(map(Display, names)), right, {"top-1": 1, "top-5": 5})

    return evaluate


def words(name: str) -> str:
    """A class as one would say it: folders and keys cannot hold every name, so an underline is a space."""
    return name.replace("_", " ")


def _captioned(context: Context) -> CaptionedImages:
    """Images with captions of a file, of the database, or with the names of their classes."""
    request = context.request
    if request.key is not None:
        if request.captions or request.split:
            raise UsageError("--key asks for classes, not for captions", hint="leave --captions and --split out")
        return _classes(context)
    if request.min_images is not None:
        raise UsageError("--min-images is about classes", hint="say what tells them: --key KEY")
    data = request.data
    file = request.captions or (captions.find(data) if data is not None and data.is_dir() else None)
    if file is not None:
        return _joined(context, captions.read(file, context.notes, request.split), file)
    if request.split is not None:
        raise UsageError("--split is of a file of captions", hint="name it: --captions FILE")
    found = context.chosen(context.images())[: request.limit]
    said = [(picture, [line for line in (picture.caption or "").splitlines() if line.strip()]) for picture in found]
    context.notes.add(
        f"images of more than {MOST_CAPTIONS} captions, of which the first are asked",
        [picture.path for picture, lines in said if len(lines) > MOST_CAPTIONS],
    )
    told = [(text, picture) for picture, lines in said for text in lines[:MOST_CAPTIONS]]
    if not told:
        raise SourceError(
            "no image has a caption",
            hint="name a file of captions: --captions FILE; or classes to ask for: --key KEY",
        )
    return _together(context, found, told)


def _classes(context: Context) -> CaptionedImages:
    found = context.pictures()
    labelled = grouped.label(
        context, found, labels(found, context.request.key or "", context.request.data), "class", least=1
    )
    names = sorted({labelled.labels[place] for place in labelled.asking.tolist()})
    place = {name: number for number, name in enumerate(names)}
    pairs = [(place[label], n) for n, label in enumerate(labelled.labels) if label in place]
    return CaptionedImages(labelled.pictures, [words(name) for name in names], pairs)


def _joined(context: Context, rows: Sequence[Caption], file: Path) -> CaptionedImages:
    """Images that a file of captions names: files below the folder, or images of the database."""
    request, notes = context.request, context.notes
    data = request.data if request.data is not None and request.data.is_dir() else None
    there = {} if data is not None else {picture.location: picture for picture in context.images()}
    names = Names(map(str, list_images(data)) if data is not None else there)
    placed = {caption.name: names.find(caption.name) for caption in rows}
    notes.add("images of the captions are not there", (name for name, path in placed.items() if path is None))
    wanted = list(dict.fromkeys(path for path in placed.values() if path is not None))
    if not wanted:
        raise SourceError(f"none of the images that {file} names are there", hint="see --captions and --split")
    if data is not None:
        first = wanted[
            : request.limit if request.filter is None else None
        ]  # so that no more are embedded than are needed
        there = context.bringer.bring(files_source(list(map(Path, first)), data), notes)
    chosen = context.chosen(there[path] for path in wanted if path in there)[: request.limit]
    known = {picture.location: picture for picture in chosen}
    told = [(caption.text, known[path]) for caption in rows if (path := placed[caption.name]) in known]
    return _together(context, chosen, told)


def _together(
    context: Context, found: Sequence[StoredImage], told: Sequence[tuple[str, StoredImage]]
) -> CaptionedImages:
    """Texts told once each, over distinct images; those without any are there to be found."""
    kept = context.settle(found)
    at = {picture.content_id: number for number, picture in enumerate(kept)}
    pairs = [(text, at[picture.content_id]) for text, picture in told if picture.content_id in at]
    with_text = {place for _, place in pairs}
    context.notes.add("images have no caption, and are only wrong answers",
                      (picture.path for n, picture in enumerate(kept) if n not in with_text))  # fmt: skip
    place = {text: number for number, text in enumerate(dict.fromkeys(text for text, _ in pairs))}
    if len(place) < 2:
        raise SourceError("all captions are the same, so every answer would be right", hint="give others")
    return CaptionedImages(kept, list(place), [(place[text], picture) for text, picture in pairs])


def _embed(context: Context, model: StoredModel, texts: Sequence[str], template: str = AS_IT_IS) -> Vectors:
    """Texts by the model's own network, in the templates that are wished for, or else in this one."""
    network, form = context.network(model), context.request.template or template
    rows = network.embed_texts(texts, form)
    context.notes.add(
        f"captions are longer than the {network.encoder.text_context} tokens that {model.name} reads",
        (cut.text for cut in network.cut_texts(network.long_forms(texts, form))),
    )
    return Vectors(rows, np.ones(len(rows), bool), model.storage)


def _outcome(
    ranked: Ranked,
    questions: Sequence[Display],
    answers: Sequence[Display],
    right: Sequence[Columns],
    at: Mapping[str, int],
) -> Outcome:
    hits = {name: metrics.mean(metrics.hits(ranked, k)) for name, k in at.items()}
    best, worst = examples.choose(ranked, 1 / ranked.first, questions, answers, right)
    curve = metrics.over_k(metrics.hits, ranked, min(DEEPEST, len(answers)))
    return Outcome(hits, len(questions), {}, {"recall over k": curve}, best, worst)
