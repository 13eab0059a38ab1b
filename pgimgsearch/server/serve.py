"""Run the embedder: open the models, open both listeners, and close them in order."""

import asyncio
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from pgimgsearch.database.connection import connect
from pgimgsearch.database.models import list_aliases
from pgimgsearch.database.privileges import can_write_texts
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.registry import Loader, check_canary, get_stored, open_model
from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.runtime.cpu_parallel import cores
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.server.http_api import application
from pgimgsearch.server.metrics import Metrics
from pgimgsearch.server.pg_server import PgServer
from pgimgsearch.server.service import Service
from pgimgsearch.server.text_cache_writer import TextCache


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where to listen, for Postgres and for HTTP, and the certificate for TLS."""

    host: str
    port: int
    http_port: int
    certificate: Path | None = None
    key: Path | None = None

    def tls(self) -> ssl.SSLContext | None:
        """The certificate, ready for use."""
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            hint = "give PEM files: --tls-cert and --tls-key"
            raise UsageError(f"the certificate cannot be used: {error}", hint=hint) from error
        return context


def open_models(
    url: str, names: Sequence[str], placement: Placement, checkpoint: Checkpoint
) -> tuple[list[LoadedModel], dict[str, str]]:
    """Load stored models by name or alias, those of the aliases if none is named, and say what the aliases mean."""
    with connect(url) as connection:
        aliases = list_aliases(connection)
        stored = {get_stored(connection, name).name: None for name in names or aliases}
        if not stored:
            raise ModelError("there is no model to serve", hint="add one first: pgimgsearch models add clip-vit-b-32")
        loader = Loader(placement)
        models = [open_model(connection, name, checkpoint, placement, loader) for name in stored]
        for model in models:
            check_canary(connection, model)
    return models, aliases


def run(
    url: str, models: Sequence[LoadedModel], aliases: dict[str, str], listeners: Listeners, password: str,
    most_waiting: int, opened: Callable[[], None],
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM; what waits is answered. ``opened`` is called when both listeners are open."""
    sys.setswitchinterval(0.001)  # an answer should not wait 5 ms for a thread that has all the time
    metrics = Metrics()
    with connect(url) as connection:
        cache = TextCache(url, metrics) if can_write_texts(connection) else None
    service = Service(models, aliases, cache, metrics, cores(), most_waiting)
    for number in (signal.SIGINT, signal.SIGTERM):  # the HTTP server acts on them, and then hands them on
        signal.signal(number, signal.SIG_IGN)
    try:
        asyncio.run(_serve(service, listeners, password, opened))
    finally:
        service.close()


async def _serve(service: Service, listeners: Listeners, password: str, opened: Callable[[], None]) -> None:
    tls = listeners.tls()
    wire = PgServer(service, password, tls)
    with _bound(listeners.host, listeners.port) as postgres, _bound(listeners.host, listeners.http_port) as http:
        listening = await wire.start(postgres)
        files = {"ssl_certfile": listeners.certificate, "ssl_keyfile": listeners.key} if tls else {}
        config = uvicorn.Config(application(service, password), log_level="warning", access_log=False, **files)  # type: ignore[arg-type]
        try:
            await _HttpServer(config, opened).serve([http])  # until a signal
        finally:
            listening.close()
            await wire.hang_up()


class _HttpServer(uvicorn.Server):
    """Calls ``opened`` once it listens."""

    def __init__(self, config: uvicorn.Config, opened: Callable[[], None]) -> None:
        super().__init__(config)
        self._opened = opened

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._opened()


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="choose others with --host, --port and --http-port",
        ) from error
