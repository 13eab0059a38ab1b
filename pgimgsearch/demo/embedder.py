"""The embedder of the demo: what ``serve`` runs, in this process, for the built-in models."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import list_aliases
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.server.in_thread import in_thread
from pgimgsearch.server.metrics import Metrics
from pgimgsearch.server.pg_server import PgServer
from pgimgsearch.server.service import Service


@contextmanager
def embedder(connection: Connection, models: Sequence[LoadedModel]) -> Iterator[None]:
    """Answer new texts and images in SELECTs for the time of the block."""
    password = secrets.token_urlsafe()
    service = Service(models, list_aliases(connection), None, Metrics(), workers=1)
    with closing(service), in_thread(PgServer(service, password, None)) as port:
        connection.execute("select imgsearch.connect_embedder('127.0.0.1', %s, %s, 'disable')", [port, password])
        yield
