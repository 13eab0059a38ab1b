"""Clients that search at once, by pgbench, which takes little of the cores that it shares with the server."""

import re
from pathlib import Path
from tempfile import NamedTemporaryFile

from pgimgsearch.database import embedded_programs as programs
from pgimgsearch.models.runtime.cpu_parallel import cores

CLIENTS, SECONDS = (1, cores(), 16), 8
SEARCH = "\\set id random(1, {rows})\nselect * from imgsearch.similar(:id);\n"


def throughputs(url: str, rows: int) -> dict[str, float]:
    """Queries a second over images 1 .. rows, of one client, of as many as there are cores, and of 16, and what 16 win."""
    with NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(SEARCH.format(rows=rows))
        file.flush()
        Path(file.name).chmod(0o644)  # pgbench runs as the server's user
        rates = {f"{clients} clients, queries/s": _throughput(url, file.name, clients) for clients in CLIENTS}
    return rates | {"16 clients over 1": rates["16 clients, queries/s"] / rates["1 clients, queries/s"]}


def _throughput(url: str, script: str, clients: int) -> float:
    threads = str(min(clients, cores()))
    said = programs.run(
        "pgbench", "--no-vacuum", "--protocol", "prepared", "--client", str(clients), "--jobs", threads,
        "--time", str(SECONDS), "--file", script, url, folder=Path("/"),
    ).stdout  # fmt: skip
    found = re.search(r"tps = ([\d.]+)", said)
    assert found is not None, said
    return float(found[1])
