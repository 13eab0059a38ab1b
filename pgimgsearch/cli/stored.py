"""The stored model that a command means."""

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel, find_model


def stored_model(connection: Connection, name: str) -> StoredModel:
    """By its name, an alias, or any name that would have added it; raises ModelError for other names."""
    if (stored := find_model(connection, name)) is not None:
        return stored
    from pgimgsearch.embeddings.registry import get_stored  # imports NumPy, which searches by id do without

    return get_stored(connection, name)
