"""Whether stored models still give the vectors they gave: the part of a doctor's work that loads them."""

from collections.abc import Iterator

from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection
from pgimgsearch.embeddings import registry as register
from pgimgsearch.embeddings.registry import Loader
from pgimgsearch.errors import DriftError, ModelError
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.operations.diagnosis import Finding


def examine(connection: Connection, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Load every stored model and compare its canary; one that cannot be loaded here is said to be unchecked."""
    loader = Loader(Placement())
    for model in store.models(connection):
        name = f"canary {model.name}"
        try:
            distance = register.check_canary(
                connection, register.open_model(connection, model.name, checkpoint, loader=loader)
            )
        except DriftError as error:
            yield Finding(name, "bad", str(error), error.hint or "")
        except ModelError as error:
            yield Finding(name, "warn", f"not checked: {error}", error.hint or "")
        else:
            told = "it was added without one" if distance is None else f"cosine distance {distance:.1e}"
            yield Finding(name, "good", told)
