"""The stored model that a command means."""

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel


def stored_model(connection: Connection, name: str) -> StoredModel:
    """By its name, an alias, or any name that would have added it; raises ModelError for other names."""
    from pgimgsearch.embeddings.registry import get_stored  # needs NumPy, which no help page waits for

    return get_stored(connection, name)
