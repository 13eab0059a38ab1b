"""What an ingest passes from stage to stage: an item for each file that needs work, and the counts of all files."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from pgimgsearch.sources.decode import ImageFacts
from pgimgsearch.sources.exif import as_metadata
from pgimgsearch.sources.source import ScannedFile
from pgimgsearch.sources.storable import UnstorableRow

OUTCOMES = ("embedded", "reused", "unchanged", "skipped", "failed")


@dataclass(slots=True)
class Item:
    """A file that needs work. Models are referred to by their position in the run.

    ``wanted`` models still need a vector of it; ``reused`` of them have one of the same bytes, or get it from another
    item. ``reasons`` says why a model skips it. A ``twin`` is an earlier item with the same bytes, whose outcome it
    shares. ``failure`` is (class, message), and ``lasting`` if it need not be tried again while the file stays as it
    is; ``rejected`` is why the image is not stored at all. ``replaces`` is whether its key is stored already, perhaps
    with another content.
    """

    file: ScannedFile
    wanted: frozenset[int]
    replaces: bool = False
    data: bytes = b""
    sha256: bytes = b""
    size: int = 0
    reused: frozenset[int] = frozenset()
    image: ImageFacts | None = None
    prepared: dict[int, NDArray[Any]] = field(default_factory=dict)
    vectors: dict[int, NDArray[Any]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    twin: "Item | None" = None
    about: Mapping[str, Any] = field(default_factory=dict)  # of a stored content, as ImageFacts has it
    failure: tuple[str, str] | None = None
    lasting: bool = True
    rejected: str | None = None

    def exif(self) -> dict[str, Any]:
        """What a camera wrote into the image."""
        image = self.image or (self.twin.image if self.twin is not None else None)
        return as_metadata(self.about if image is None else image.about)

    def fail(self, error: BaseException, *, lasting: bool = True) -> None:
        """Record why this file has no vectors; ``lasting`` is whether that is said of its bytes, as they are."""
        self.failure = (type(error).__name__, " ".join(str(error).split())[:500] or type(error).__name__)
        self.lasting = lasting and not isinstance(error, MemoryError)
        self.data, self.image = b"", None

    def refuse(self, error: BaseException) -> None:
        """Record why the database does not hold this row; its vectors stay, for others with the same bytes."""
        self.failure = (UnstorableRow.__name__, " ".join(str(error).split())[:500])
        self.lasting = False

    def resolve_twin(self) -> None:
        """Take over the outcome of the item with the same bytes, which is finished by now."""
        twin = self.twin
        if twin is None or self.failure is not None:
            return
        if twin.failure is not None and twin.vectors:  # its row was refused, and so nothing of it is stored
            self.vectors |= {model: vector for model, vector in twin.vectors.items() if model in self.wanted}
            self.reused -= self.vectors.keys()
            self.image = twin.image
        else:
            self.failure, self.lasting = twin.failure, twin.lasting
        self.reasons |= {model: why for model, why in twin.reasons.items() if model in self.wanted}

    def outcome(self, model: int) -> str:
        """How this file ended for a model that wanted it."""
        if self.failure is not None:
            return "failed"
        if self.rejected is not None or model in self.reasons:
            return "skipped"
        return "embedded" if model in self.vectors else "reused"


class Counts:
    """Files by model and outcome; for each model they add up to the files that were scanned."""

    def __init__(self, models: list[str]) -> None:
        self.by_model: dict[str, Counter[str]] = {name: Counter() for name in models}
        self._names = models
        self._lock = threading.Lock()

    def add(self, model: int, outcome: str, number: int = 1) -> None:
        """Count files of one outcome for a model."""
        with self._lock:
            self.by_model[self._names[model]][outcome] += number

    def add_item(self, item: Item, number: int = 1) -> None:
        """Count a finished item, or undo that with -1."""
        for model in item.wanted:
            self.add(model, item.outcome(model), number)

    def done(self) -> int:
        """Files that have an outcome for every model."""
        with self._lock:
            return min((sum(counter.values()) for counter in self.by_model.values()), default=0)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Model -> outcome -> files, with ``scanned`` as their sum."""
        with self._lock:
            return {
                name: {"scanned": sum(counter.values())} | {outcome: counter[outcome] for outcome in OUTCOMES}
                for name, counter in self.by_model.items()
            }
