"""``plan``: what a number of images will cost."""

import re
from typing import Annotated

import typer

from pgimgsearch.cli.terminal import DeviceOption, ModelOption, TorchDtypeOption, TrustOption, terminal_of
from pgimgsearch.database.connection import connect
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import UsageError

FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def plan(
    context: typer.Context,
    images: Annotated[str, typer.Option(help="The number of distinct images: 250000, 500k, 10M.")],
    model: ModelOption = "default",
    memory: Annotated[
        float | None, typer.Option(min=0.1, help="Gigabytes of the database's server. Default: this machine's.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the model and time it; downloads it if necessary.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: TorchDtypeOption = "auto",
    trust: TrustOption = False,
) -> None:
    """Estimate disk, memory and hours for a number of images, from measurements on this database and device."""
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.operations import plan as planning
    from pgimgsearch.operations.plan_rates import measure_rates, planned_model, server_memory

    terminal = terminal_of(context)
    count, remote = parse_count(images), bool(terminal.settings.db)
    with database_url(terminal.settings) as url, connect(url) as connection:
        wanted = planned_model(connection, model)
        rates = measure_rates(
            connection, wanted, remote=remote,
            placement=Placement(device, dtype) if measure else None, trust=trust,
        )  # fmt: skip
        server = server_memory(connection, remote=remote, gigabytes=memory)
    found = planning.plan(count, wanted, rates, server)
    told = planning.as_dict(found, wanted, rates)
    if terminal.settings.json:
        terminal.show_one(told)
        return
    terminal.show_one({key: f"{value:,.4g}" if isinstance(value, float) else value for key, value in told.items()
                       if not isinstance(value, dict | list) and value is not None})  # fmt: skip
    for what, source in told["measured"].items():
        terminal.write(f"{what}: {source}")
    for line in told["advice"]:
        terminal.write(f"- {line}")


def parse_count(text: str) -> int:
    """10M and the like as a number; raises UsageError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmb]?)", text.strip().lower().replace("_", ""))
    count = int(float(found[1]) * FACTORS[found[2]]) if found else 0
    if count < 1:
        raise UsageError(f"{text} is no number of images", hint="write 250000, 500k, 10M or 1.5B")
    return count
