"""``serve``: the embedder, for texts and images that SQL brings."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from pgimgsearch.cli.terminal import (
    DeviceOption,
    DtypeOption,
    PasswordFileOption,
    RuntimeOption,
    TrustOption,
    terminal_of,
)
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import UsageError
from pgimgsearch.settings import shared_password


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
    runtime: RuntimeOption = "torch",
    trust: TrustOption = False,
) -> None:
    """Run the embedder: keep models loaded and embed new texts and images, for SQL and over HTTP."""
    terminal = terminal_of(context)
    for package in ("fastapi", "uvicorn", "prometheus_client", "multipart"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"serve needs the package {package}", hint="run: pip install 'pgimgsearch[server]'")
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.server import serve as server

    listeners = server.Listeners(host, port, http_port, tls_cert, tls_key)
    listeners.tls()
    secret = password or terminal.settings.embedder_password
    with database_url(terminal.settings) as url:
        models, aliases = server.open_models(
            url, model or [], Placement(device, dtype, runtime), Checkpoint(trust=trust)
        )
        names = ", ".join(held.stored.name for held in models)

        def opened() -> None:
            terminal.notify(f"serving {names} for Postgres on {host}:{port} and for HTTP on {host}:{http_port}")
            terminal.notify(
                f"its password is in {secret}; once a database: pgimgsearch db connect-embedder {host} {port}"
            )

        server.run(url, models, aliases, listeners, shared_password(secret), queue, opened)
