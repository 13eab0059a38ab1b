"""The models of a run whose networks are loaded when the first image needs them: often, none does."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Self

from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings.loaded_model import LoadedModel


class DeferredModels:
    """Models by their rows. ``load`` gives the same models in the same order, each with its network."""

    def __init__(self, stored: Sequence[StoredModel], load: Callable[[], Sequence[LoadedModel]]) -> None:
        self.stored = list(stored)
        self.loaded: Sequence[LoadedModel] | None = None
        self._load, self._lock = load, Lock()

    @classmethod
    def of(cls, models: Sequence[LoadedModel]) -> Self:
        """Models that are loaded already."""
        made = cls([model.stored for model in models], lambda: models)
        made.load()
        return made

    def load(self) -> Sequence[LoadedModel]:
        """Load the networks, the first time; in any thread. Raises what loading raises, each time."""
        with self._lock:
            if self.loaded is None:
                self.loaded = self._load()
            return self.loaded
