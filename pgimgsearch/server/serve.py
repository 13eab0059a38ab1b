"""Run the embedder: load the models, open both listeners, follow the database, and close all in order."""

import asyncio
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from pgimgsearch.database.connection import connect
from pgimgsearch.database.privileges import can_write_texts
from pgimgsearch.errors import UsageError
from pgimgsearch.models.runtime.cpu_parallel import cores
from pgimgsearch.server.bound import bound
from pgimgsearch.server.http_api import application
from pgimgsearch.server.http_guard import guarded_protocol
from pgimgsearch.server.metrics import Metrics
from pgimgsearch.server.model_follower import ModelFollower
from pgimgsearch.server.pg_server import SECONDS_TO_ANSWER, PgServer
from pgimgsearch.server.service import Service
from pgimgsearch.server.text_cache_writer import TextCache

OPEN_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where to listen, for Postgres and for HTTP, and the certificate for TLS."""

    host: str
    port: int
    http_port: int
    certificate: Path | None = None
    key: Path | None = None

    @property
    def reachable_host(self) -> str:
        """The host by which programs on this machine reach it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104

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


def run(
    url: str, follower: ModelFollower, listeners: Listeners, password: str, most_waiting: int,
    opened: Callable[[Service], None],
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM; what waits is answered. ``opened`` is called when both listeners are open."""
    with suppress(ValueError, OSError):  # each connection is an open file
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    sys.setswitchinterval(0.001)  # an answer should not wait 5 ms for a thread that has all the time
    metrics = Metrics()
    with connect(url) as connection:
        models, aliases = follower.open(connection)
        cache = TextCache(url, metrics) if can_write_texts(connection) else None
    service = Service(models, aliases, cache, metrics, cores(), most_waiting)
    for number in (signal.SIGINT, signal.SIGTERM):  # the HTTP server acts on them, and then hands them on
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        opened(service)
        follower.follow(service)

    try:
        asyncio.run(_serve(service, listeners, password, follow))
    finally:
        follower.close()
        service.close()


async def _serve(service: Service, listeners: Listeners, password: str, opened: Callable[[], None]) -> None:
    tls = listeners.tls()
    wire = PgServer(service, password, tls)
    with bound(listeners.host, listeners.port) as postgres, bound(listeners.host, listeners.http_port) as http:
        listening = await wire.start(postgres)
        config = uvicorn.Config(
            application(service, password), http=guarded_protocol(tls), ws="none", log_level="error", access_log=False,
            timeout_graceful_shutdown=SECONDS_TO_ANSWER,
        )  # fmt: skip
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
        """Listen, and say so from another thread, since who is told may ask us."""
        await super().startup(sockets)
        await asyncio.get_running_loop().run_in_executor(None, self._opened)
