"""Which models the embedder holds: those that aliases mean, and those that are added while it runs."""

import threading
import time
from collections.abc import Callable, Sequence

import psycopg

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, find_model, list_aliases, list_models
from pgimgsearch.database.reconnect import session
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.registry import Loader, check_canary, get_stored, open_model
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.server.service import Service

SECONDS_BETWEEN_LOOKS = 0.5  # at two small tables
SECONDS_TO_END = 5.0
SECONDS_BETWEEN_TRIES = 60.0  # to load a model that could not be loaded


class ModelFollower:
    """Loads models into a service. With ``names``, only the models that those mean; an alias among them is followed.

    A model that was loaded is held until the service ends, so that an alias can be moved back at once.
    """

    def __init__(
        self, url: str, names: Sequence[str], placement: Placement, checkpoint: Checkpoint, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._url, self._names, self._checkpoint, self._say = url, names, checkpoint, say
        self._placement = placement
        self._first: set[str] = set()  # the names of the models that were there at the start
        self._failed: dict[str, float] = {}  # name -> when it may be tried again
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def open(self, connection: Connection) -> tuple[list[LoadedModel], dict[str, str]]:
        """Load the models of now, and say what the aliases mean; raises ModelError where one cannot be loaded."""
        stored = list_models(connection)
        self._first = {model.name for model in stored}
        for name in self._names:
            get_stored(connection, name)  # an unknown one is refused
        loader = Loader(self._placement, self._say)
        models = [self._load(connection, model.name, loader) for model in self._wanted(connection, stored)]
        return models, list_aliases(connection)

    def follow(self, service: Service) -> None:
        """Keep a service in step with the database from now on."""
        self._service = service
        self._thread.start()

    def close(self) -> None:
        """Stop following; a model that is being loaded is waited for a moment."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(SECONDS_TO_END)

    def _run(self) -> None:
        said = ""
        while not self._stopped.is_set():
            try:
                with session(self._url, self._stopped) as opened:
                    while not self._stopped.wait(SECONDS_BETWEEN_LOOKS):
                        opened.run(lambda: self._look(opened.connection))
                        if said:
                            self._say("models and aliases are followed again")
                        said = ""
            except Exception as error:  # whatever it is, the models that are held go on answering
                if str(error) != said and not self._stopped.is_set():
                    self._say(f"models and aliases are not followed: {error}")
                said = str(error)
                self._stopped.wait(SECONDS_BETWEEN_LOOKS)

    def _look(self, connection: Connection) -> None:
        held = self._service.models
        stored = {model.name: model for model in list_models(connection) if model.fingerprint is not None}
        for model in self._wanted(connection, list(stored.values())):
            is_held = model.name in held and held[model.name].stored.fingerprint == model.fingerprint
            if not is_held and self._failed.get(model.name, 0.0) <= time.monotonic():
                self._add(connection, model.name)
        kept = {name: model for name, model in self._service.models.items() if name in stored}
        self._service.hold(kept, list_aliases(connection))

    def _wanted(self, connection: Connection, stored: Sequence[StoredModel]) -> list[StoredModel]:
        if self._names:
            found = [find_model(connection, name) for name in self._names]  # one may be dropped meanwhile
            names = {model.name for model in found if model is not None}
        else:
            names = {*list_aliases(connection).values(), *({model.name for model in stored} - self._first)}
        return [model for model in stored if model.name in names]

    def _add(self, connection: Connection, name: str) -> None:
        self._service.loading = name
        try:
            model = self._load(connection, name, Loader(self._placement, self._say))
        except psycopg.OperationalError:
            raise
        except Exception as error:  # a network that does not fit raises anything
            self._failed[name] = time.monotonic() + SECONDS_BETWEEN_TRIES
            hint = getattr(error, "hint", None)
            self._say(f"{name} is not served: {error}{f' ({hint})' if hint else ''}")
        else:
            self._service.hold(self._service.models | {name: model}, list_aliases(connection))
            self._say(f"serving {name} too")
        finally:
            self._service.loading = None

    def _load(self, connection: Connection, name: str, loader: Loader) -> LoadedModel:
        model = open_model(connection, name, self._checkpoint, loader=loader)
        check_canary(connection, model)
        return model
