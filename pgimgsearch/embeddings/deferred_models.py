"""The models of a run whose networks are loaded when the first image needs them: often, none does."""

import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Self

from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import ModelError


class DeferredModels:
    """Models by their rows. ``load`` gives the same models in the same order, each with its network.

    ``seconds`` is what loading took, once it was asked for.
    """

    def __init__(self, stored: Sequence[StoredModel], load: Callable[[], Sequence[LoadedModel]]) -> None:
        self.stored = list(stored)
        self.loaded: Sequence[LoadedModel] | None = None
        self.seconds = 0.0
        self._load, self._lock = load, Lock()
        self._failed: Exception | None = None

    @classmethod
    def of(cls, models: Sequence[LoadedModel]) -> Self:
        """Models that are loaded already."""
        made = cls([model.stored for model in models], lambda: models)
        made.loaded = models
        return made

    def load(self) -> Sequence[LoadedModel]:
        """Load the networks, the first time; in any thread. Raises what loading raised, each time."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self.loaded is None:
                start = time.perf_counter()
                try:
                    self.loaded = self._checked(self._load())
                except Exception as error:
                    self._failed = error
                    raise
                self.seconds = time.perf_counter() - start
            return self.loaded

    def _checked(self, loaded: Sequence[LoadedModel]) -> Sequence[LoadedModel]:
        if [model.stored.model_id for model in loaded] != [model.model_id for model in self.stored]:
            names = ", ".join(model.name for model in self.stored)
            raise ModelError(f"{names} was replaced while the run began", hint="run the same command again")
        return loaded
