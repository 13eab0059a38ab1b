"""What a doctor looks at: each finding says how it is and what mends it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pgimgsearch.database import models as store
from pgimgsearch.database.connection import (
    SAFE_PGVECTOR,
    Connection,
    check_database,
    pgvector_version,
    translated_errors,
)
from pgimgsearch.errors import PgImgSearchError, SchemaError
from pgimgsearch.indexing import status as index_status


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: Literal["good", "warn", "bad"]
    finding: str
    mend: str = ""


def examine(connection: Connection) -> list[Finding]:
    """Look at server, schema, models and indexes. Stops at the schema where that does not fit."""
    number = connection.info.server_version
    findings = [Finding("postgres", "good", f"{number // 10000}.{number % 10000}")]
    try:
        check_database(connection)
    except SchemaError as error:
        return [*findings, Finding("schema", "bad", str(error), error.hint or "")]
    findings.append(Finding("schema", "good", "fits this program"))
    findings.append(_pgvector(connection))
    return [*findings, *_models(connection), *_indexes(connection), *_failures(connection), *_embedder(connection)]


def _pgvector(connection: Connection) -> Finding:
    version = pgvector_version(connection) or ()
    shown = ".".join(map(str, version))
    if version < SAFE_PGVECTOR:
        return Finding("pgvector", "warn", f"{shown}: vacuum may corrupt HNSW indexes before 0.8.5",
                       "install 0.8.5 or newer, then: alter extension vector update")  # fmt: skip
    return Finding("pgvector", "good", shown)


def _models(connection: Connection) -> Iterator[Finding]:
    for row in store.coverage(connection, exact=True):
        name = row["model"]
        if row["status"] == "building":
            yield Finding(
                f"model {name}",
                "warn",
                "its first ingest did not end",
                f"pgimgsearch ingest ... --model {name}",
            )
        elif row["missing"]:
            yield Finding(f"model {name}", "warn", f"{row['missing']} contents have no vector",
                          f"pgimgsearch ingest ... --model {name}")  # fmt: skip
        else:
            yield Finding(f"model {name}", "good", f"{row['embedded']} vectors")


def _indexes(connection: Connection) -> Iterator[Finding]:
    for row in index_status.status(connection):
        broken = row["method"] != "none" and not row["valid"]
        what, _, mend = (row["advice"] or row["method"]).partition(": ")
        yield Finding(f"index {row['model']}", "bad" if broken else "warn" if row["advice"] else "good", what, mend)


def _failures(connection: Connection) -> Iterator[Finding]:
    row = connection.execute("select count(*) from imgsearch.ingest_failure where kind = 'failed'").fetchone()
    if row and row[0]:
        yield Finding("failures", "warn", f"{row[0]} files failed", "select * from imgsearch.ingest_failure; "
                      "once they are mended: pgimgsearch ingest ... --retry-failed")  # fmt: skip


def _embedder(connection: Connection) -> Iterator[Finding]:
    """The way to the embedder, where one is connected."""
    if connection.execute("select imgsearch._dblink()").fetchone() == (None,):
        return
    try:
        with translated_errors():
            rows = connection.execute(
                "select model, device, problem from imgsearch.embedder_status() where serves or problem <> 'not served'"
            ).fetchall()
    except PgImgSearchError as error:
        yield Finding("embedder", "bad", str(error), error.hint or "")
        return
    for model, device, problem in rows:
        if problem:
            yield Finding("embedder", "bad", f"{model}: {problem}", "start it again: pgimgsearch serve")
        else:
            yield Finding("embedder", "good", f"serves {model} on {device}")
    if not rows:
        yield Finding("embedder", "warn", "it serves none of the models here", "pgimgsearch serve --model NAME")
