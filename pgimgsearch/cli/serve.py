"""``serve``: the embedder, for texts and images that SQL brings, and the embedded database."""

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgimgsearch.cli.terminal import (
    DeviceOption,
    DtypeOption,
    PasswordFileOption,
    RuntimeOption,
    TrustOption,
    terminal_of,
)
from pgimgsearch.database.connection import connect
from pgimgsearch.database.embedded import Embedded
from pgimgsearch.database.url import database_url, shown_url
from pgimgsearch.errors import UsageError
from pgimgsearch.settings import shared_password

if TYPE_CHECKING:
    from pgimgsearch.server.service import Service


def serve(
    context: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A stored model or an alias. Default: all aliases.")
    ] = None,
    host: Annotated[str, typer.Option(help="The IP address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="For Postgres.")] = 5440,
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="For HTTP.")] = 8040,
    password: PasswordFileOption = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate in PEM; both ports then use TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Texts and images that may wait; beyond that, the answer is busy.")
    ] = 512,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    runtime: RuntimeOption = "auto",
    trust: TrustOption = False,
) -> None:
    """Answer new texts and images, in SQL and over HTTP; runs the embedded database too.

    It keeps the models of all aliases loaded, and loads those that are added or that an alias is moved to.
    """
    terminal = terminal_of(context)
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.server import serve as server
    from pgimgsearch.server.model_follower import ModelFollower

    listeners = server.Listeners(host, port, http_port, tls_cert, tls_key)
    listeners.tls()
    if tls_cert and terminal.settings.db is None:
        raise UsageError(
            "the embedded Postgres has no TLS, so it cannot ask an embedder that has",
            hint="name a Postgres of your own: --db postgresql://...; or leave --tls-cert and --tls-key out",
        )
    secret = password or terminal.settings.embedder_password
    word = shared_password(secret)
    signal.signal(signal.SIGTERM, _end)
    embedded = Embedded(terminal.settings.home) if terminal.settings.db is None else None
    with database_url(terminal.settings) as url, embedded.serving() if embedded else nullcontext():
        follower = ModelFollower(
            url, model or [], Placement(device, dtype, runtime), Checkpoint(trust=trust), terminal.notify
        )

        def opened(service: "Service") -> None:
            reached = listeners.reachable_host
            if embedded:
                connect_embedder(url, reached, port, word)
            names = ", ".join(service.models) or "no model yet; ingest images, and their model is loaded"
            terminal.notify(f"serving {names}")
            scheme = "https" if tls_cert else "http"
            secretly = " (with its password: pgimgsearch db url)" if embedded and embedded.record().port else ""
            terminal.notify(f"database {shown_url(url)}{secretly}")
            terminal.notify(f"HTTP     {scheme}://{reached}:{http_port} (see /docs)")
            if not embedded:
                terminal.notify(f"once a database: pgimgsearch db connect-embedder {reached} {port}")
            terminal.notify(f"password in {secret}; stop with Ctrl-C")

        server.run(url, follower, listeners, word, queue, opened)


def _end(*_: object) -> None:
    """End as by an exception, so that the embedded database is stopped too."""
    raise SystemExit(0)


def connect_embedder(url: str, host: str, port: int, password: str) -> None:
    """Connect the embedded database, which has no TLS, to this embedder."""
    with connect(url) as connection, connection.transaction():
        connection.execute("select imgsearch.connect_embedder(%s, %s, %s, 'disable')", [host, port, password])
        connection.execute("select from imgsearch.embedder_status()")
