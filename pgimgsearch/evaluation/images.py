"""The images of an evaluation: those the database has, and files that are brought into it first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.embeddings.read_vectors import read_vectors
from pgimgsearch.embeddings.similarity import unit_rows
from pgimgsearch.errors import InterruptedRun, SourceError
from pgimgsearch.evaluation.ranking import Vectors
from pgimgsearch.evaluation.warnings import Warnings
from pgimgsearch.ingest import run
from pgimgsearch.ingest.dry_run import dry_run
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.reporter import Reporter
from pgimgsearch.sources.locations import shown_location
from pgimgsearch.sources.sidecar import pattern
from pgimgsearch.sources.source import ScannedFile, Source

LONGEST_CAPTION, LARGEST_METADATA = 4000, 16_384  # that are looked at: packed, a million take little room in a table


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A stored image; ``path`` is as stored, ``location`` where its file is."""

    image_id: int
    content_id: int
    path: str
    location: str
    group_key: str | None
    caption: str | None
    metadata: Mapping[str, Any]


def stored(connection: Connection, collection: str | None) -> list[StoredImage]:
    """Images of the database, all or of a collection, in the order in which they came."""
    rows = connection.execute(
        "select i.image_id, i.content_id, i.path, l.root, i.group_key, left(i.caption, %(caption)s), "
        "case when octet_length(i.metadata::text) <= %(metadata)s then i.metadata else '{}' end from imgsearch.image i "
        "join imgsearch.collection l on l.collection_id = i.collection_id "
        "where %(collection)s::text is null or l.collection_id = imgsearch._collection_id(%(collection)s) "
        "order by i.image_id",
        {"collection": collection, "caption": LONGEST_CAPTION, "metadata": LARGEST_METADATA},
    ).fetchall()
    return [
        StoredImage(id_, content, path, shown_location(path, root), *rest) for id_, content, path, root, *rest in rows
    ]


@dataclass(frozen=True, slots=True)
class EvaluationIngest:
    """Brings files into the database, embedded by all models that are named; what is there is not done again."""

    url: str
    models: Sequence[str]
    collection: str | None
    device: str
    trust: bool
    reporter: Reporter

    def bring(self, source: Source, notes: Warnings) -> dict[str, StoredImage]:
        """Location -> image, in the order of the source, with what it says of them now; what fails is noted."""
        collection = self._embed(source)
        with connect(self.url) as connection:
            found = {picture.path: picture for picture in stored(connection, collection)}
            root = connection.execute("select root from imgsearch.collection where name = %s", [collection]).fetchone()
            failed = connection.execute(
                "select path, bytes, modified_at from imgsearch.ingest_failure f "
                "join imgsearch.collection c using (collection_id) where c.name = %s and f.kind = 'failed'",
                [collection],
            ).fetchall()
        brought: dict[str, StoredImage] = {}
        broken = {tuple(row) for row in failed}  # as the file is now; one that was mended since is none
        for file in source.files(root[0] if root and root[0] else ""):
            good = file.problem is None and (file.path, file.size, file.modified_at) not in broken
            if good and file.path in found:
                known = brought.get(file.location, found[file.path])
                brought[file.location] = _described(known, file, again=file.location in brought)
            else:
                notes.add("files cannot be read as images", [file.location])
        return brought

    def _embed(self, source: Source) -> str:
        """Embed what the database has not. Returns the collection of the source."""
        options = run.Options(collection=self.collection)
        planned = dry_run(self.url, source, self.models, options)
        if not any(counts["scanned"] for counts in planned.counts.values()):
            raise SourceError(f"there are no images in {source.label}", hint="give a folder that holds some")
        if not any(counts["embedded"] for counts in planned.counts.values()):
            return planned.collection
        request = ModelRequest(
            list(self.models), checkpoint=Checkpoint(trust=self.trust), placement=Placement(self.device)
        )
        models = open_models(self.url, request, [source], options.limits, self.reporter)
        report = run.ingest(self.url, source, models, options, reporter=self.reporter)
        if report.status == "interrupted":
            raise InterruptedRun(hint="run the same command again to go on")
        for name, counts in report.counts.items():
            told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)
            self.reporter.say(f"{source.label} into collection {report.collection}, {name}: {told}")
        return report.collection


def _described(picture: StoredImage, file: ScannedFile, *, again: bool) -> StoredImage:
    """An image as its source describes it: a list may have changed since the image was embedded.

    Captions of an image that is listed ``again`` are told beside each other.
    """
    caption = file.caption or picture.caption
    if again and picture.caption and file.caption:
        caption = f"{picture.caption}\n{file.caption}"
    return replace(
        picture, location=file.location, group_key=file.group_key or picture.group_key, caption=caption,
        metadata={**picture.metadata, **(file.metadata or {})},
    )  # fmt: skip


def holds(value: Any, wanted: Any) -> bool:
    """Whether JSON holds other JSON, as ``metadata @> filter`` has it."""
    if isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and all(
            key in value and holds(value[key], own) for key, own in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(value, list) and all(any(holds(one, own) for one in value) for own in wanted)
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def distinct(pictures: Sequence[StoredImage]) -> list[StoredImage]:
    """The first image of each content: the same bytes again would be an answer that no model can miss."""
    first: dict[int, StoredImage] = {}
    for picture in pictures:
        first.setdefault(picture.content_id, picture)
    return list(first.values())


def labels(pictures: Sequence[StoredImage], key: str, root: Path | None = None) -> list[str | None]:
    """What an image is said to be: ``folder``, a metadata key, or a pattern whose first group is in the path.

    What lies in ``root`` itself is in no folder.
    """
    if key == "folder":
        parents = [Path(picture.location).parent for picture in pictures]
        return [None if parent == root else parent.name for parent in parents]
    if "(" in key:
        found = pattern(key)
        return [match.group(1) if (match := found.search(picture.path)) else None for picture in pictures]
    values = [picture.metadata.get(key) for picture in pictures]
    if all(value is None for value in values):
        known = sorted({key for picture in pictures[:1000] for key in picture.metadata})
        raise SourceError(
            f"no image has the metadata key {key}",
            hint=f"there are: {', '.join(known)}" if known else "give --key folder, or a pattern such as '(.*)_[0-9]+'",
        )
    return [None if value is None else str(value) for value in values]


def vectors(connection: Connection, model: StoredModel, pictures: Sequence[StoredImage]) -> Vectors:
    """The vectors of a model for distinct images, in their order."""
    place = {picture.content_id: number for number, picture in enumerate(pictures)}
    rows, present = np.zeros((len(pictures), model.dim), np.float32), np.zeros(len(pictures), bool)
    for contents, values in read_vectors(connection, model, contents=list(place)):
        places = [place[content] for content in contents.tolist()]
        rows[places] = unit_rows(values, model.storage)
        present[places] = True
    return Vectors(rows, present, model.storage)
