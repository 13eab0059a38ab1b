"""What an evaluation is asked for, what it works with, and what comes out for a model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, list_models
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.registry import find_stored, look_up, open_model
from pgimgsearch.errors import ModelError, SourceError, UsageError
from pgimgsearch.evaluation import images as pictures
from pgimgsearch.evaluation.images import EvaluationIngest, StoredImage, distinct, holds
from pgimgsearch.evaluation.metrics import Curve, Measure
from pgimgsearch.evaluation.ranking import Columns
from pgimgsearch.evaluation.warnings import Warnings
from pgimgsearch.models.encoder import Placement, cannot_read
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.reporter import Reporter
from pgimgsearch.sources.decode import register_formats
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.listing import list_source

MOST_LACKING = 0.05  # of the images; a comparison without more of them says nothing of the whole
COMPARISONS, LEAST_QUESTIONS = 2_500_000_000, 1000  # some minutes: 50,000 questions to 50,000 answers, or fewer to more
SEED = 0


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What the user asks for. ``data`` is a folder or a list of images; without it, the images of the database."""

    models: Sequence[str] = ()
    data: Path | None = None
    collection: str | None = None
    filter: Mapping[str, Any] | None = None
    limit: int | None = None
    sample: int | None = None
    key: str | None = None
    min_images: int | None = None
    template: str | None = None
    captions: Path | None = None
    split: str | None = None
    truth: Path | None = None
    references: Path | None = None
    queries: Path | None = None
    background: Path | None = None
    limit_references: int | None = None
    score_norm: int | None = None
    whiten: int | None = None
    k: int = 10


@dataclass(frozen=True, slots=True)
class Display:
    """An image or a text, for a person."""

    text: str
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its first answers, (what, similarity, right), and right answers that are not among them."""

    question: Display
    said: str
    answers: Sequence[tuple[Display, float, bool]]
    missed: Sequence[Display]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model reached: measures over its questions, numbers without an interval, curves by kind, and examples.

    ``units`` (q,) are numbers of questions that belong together, where not each stands for itself.
    """

    measures: Mapping[str, Measure]
    questions: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    best: Sequence[Example] = ()
    worst: Sequence[Example] = ()
    units: Columns | None = None


Evaluate = Callable[[StoredModel], Outcome]


@dataclass(frozen=True)
class Context:
    """What protocols work with."""

    connection: Connection
    request: EvaluationRequest
    bringer: EvaluationIngest
    notes: Warnings
    reporter: Reporter

    @cached_property
    def models(self) -> list[StoredModel]:
        """The models, once their images are there."""
        found = [find_stored(self.connection, name) for name in self.request.models]
        for name, model in zip(self.request.models, found, strict=True):
            if model is None:
                raise ModelError(
                    f"there are no vectors of {name}",
                    hint=f"run: pgimgsearch ingest DIR --model {name}; or name the images: pgimgsearch evaluate DIR",
                )
        if len({model.model_id for model in found if model is not None}) < len(found):
            raise UsageError("a model is named twice, perhaps by an alias", hint="name each model once")
        return [model for model in found if model is not None]

    def pictures(self) -> list[StoredImage]:
        """The distinct images that are meant, with vectors of all models."""
        return self.settle(self.chosen(self.images())[: self.request.limit])

    def images(self) -> list[StoredImage]:
        """All images of the data, equal ones too, beyond filter and limit."""
        data, request = self.request.data, self.request
        if data is not None and not data.is_dir() and data.suffix.lower() in register_formats():
            raise SourceError(f"{data} is one image", hint="give a folder or a list of images")
        if data is None:
            found = pictures.stored(self.connection, request.collection)
        else:
            source = folder_source(data) if data.is_dir() else list_source(str(data))
            found = list(self.bringer.bring(source, self.notes).values())
        return found

    def chosen(self, found: Iterable[StoredImage]) -> list[StoredImage]:
        """Those whose metadata hold the filter, if there is one; raises SourceError where none is left."""
        kept = [p for p in found if self.request.filter is None or holds(p.metadata, self.request.filter)]
        if not kept:
            raise SourceError("there are no such images", hint="run: pgimgsearch ingest DIR; see: pgimgsearch stats")
        return kept

    def settle(self, found: Sequence[StoredImage]) -> list[StoredImage]:
        """One image a content, without those that some model was never asked to embed.

        What a model has skipped stays: it is what that model misses.
        """
        kept = distinct(found)
        first = {picture.image_id for picture in kept}
        self.notes.add(
            "images have the bytes of another and count once",
            (picture.path for picture in found if picture.image_id not in first),
        )
        lacking: set[int] = set()
        for model in self.models:
            own, skipped = _missing(self.connection, model, kept)
            self.notes.add(
                f"images have no vector of {model.name}, as it finds too little in them: it misses them",
                (picture.path for picture in kept if picture.content_id in skipped),
            )
            if len(own) > MOST_LACKING * len(kept):
                raise ModelError(
                    f"{model.name} has no vectors of {len(own)} of {len(kept)} images",
                    hint=f"embed them first: pgimgsearch ingest DIR --model {model.name}",
                )
            lacking |= own
            self.notes.add(
                f"images have no vector of {model.name} yet and are left out for all",
                (picture.path for picture in kept if picture.content_id in own),
            )
        return [picture for picture in kept if picture.content_id not in lacking]

    def drawn(self, questions: int, answers: int) -> Columns:
        """Places of the questions to ask: as many as wished, or as take minutes, at random and the same each time."""
        wanted = self.request.sample or max(LEAST_QUESTIONS, COMPARISONS // answers)
        if wanted >= questions:
            return np.arange(questions)
        self.bringer.reporter.say(f"{wanted} of {questions} questions, drawn at random: see --sample")
        return np.sort(np.random.default_rng(SEED).choice(questions, wanted, replace=False))

    def need_text(self) -> None:
        """Raise ModelError for a model that reads no text, before anything is embedded."""
        for name in self.request.models:
            stored, spec = look_up(self.connection, name)
            if not (spec.text or spec.output == "auto" if stored is None else stored.has_text):
                able = [model.name for model in list_models(self.connection) if model.has_text]
                error = cannot_read(name)
                raise ModelError(str(error), hint=f"models here that can: {', '.join(able)}" if able else error.hint)

    def network(self, model: StoredModel) -> LoadedModel:
        """A model with its network, for texts."""
        bringer = self.bringer
        return open_model(self.connection, model.name, Checkpoint(trust=bringer.trust), Placement(bringer.device))


def _missing(connection: Connection, model: StoredModel, found: Sequence[StoredImage]) -> tuple[set[int], set[int]]:
    """Contents without a vector: those that the model was never asked about, and those that it has skipped."""
    query = sql.SQL(
        "select c, c in (select imgsearch._skipped_contents(%s)) from unnest(%s::bigint[]) c "
        "where not exists (select from {} e where e.content_id = c)"
    ).format(model.table)
    rows = connection.execute(query, [model.model_id, [picture.content_id for picture in found]]).fetchall()
    return {content for content, skipped in rows if not skipped}, {content for content, skipped in rows if skipped}
