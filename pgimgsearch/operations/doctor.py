"""The checks of ``doctor``: of the server, the schema, models, indexes, failures, the embedder, and canaries."""

from collections.abc import Iterator

from pgimgsearch.database.connection import (
    SAFE_PGVECTOR,
    Connection,
    check_database,
    pgvector_version,
    translated_errors,
)
from pgimgsearch.database.contents import orphans
from pgimgsearch.database.models import coverage_table, list_models
from pgimgsearch.errors import DriftError, ModelError, PgImgSearchError, SchemaError
from pgimgsearch.indexing.status import index_status
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.operations.finding import Finding
from pgimgsearch.operations.schema_check import schema_findings

SAFE_PARALLEL_PGVECTOR = (0, 8, 2)
NEWEST_PGVECTOR = (0, 8, 7)  # whose fixes are worth a note

FITS = Finding("schema", "good", "fits this release")


def server_findings(connection: Connection) -> list[Finding]:
    """Check server, schema, models and indexes. Stops at a schema that does not fit this release."""
    number = connection.info.server_version
    findings = [Finding("postgres", "good", f"{number // 10000}.{number % 10000}")]
    try:
        check_database(connection)
    except SchemaError as error:
        return [*findings, Finding("schema", "bad", str(error), error.hint or "")]
    found = [*schema_findings(connection)]
    findings += [*([] if any(f.state == "bad" for f in found) else [FITS]), *found, *_pgvector(connection)]
    if FITS not in findings:  # what follows needs these tables and functions
        return findings
    return [*findings, *_models(connection), *_indexes(connection), *_orphans(connection), *_failures(connection),
            *_embedder(connection)]  # fmt: skip


def _pgvector(connection: Connection) -> Iterator[Finding]:
    version = pgvector_version(connection) or ()
    shown = ".".join(map(str, version))
    if version < SAFE_PARALLEL_PGVECTOR:
        yield Finding(
            "parallel builds", "warn", f"pgvector {shown}: parallel index builds are unsafe (CVE-2026-3172)",
            "update pgvector; until then: alter role CURRENT_USER set max_parallel_maintenance_workers = 0",
        )  # fmt: skip
    if version < SAFE_PGVECTOR:
        yield Finding("pgvector", "warn", f"{shown}: vacuum may corrupt HNSW indexes before 0.8.5",
                      "install 0.8.5 or newer, then: alter extension vector update")  # fmt: skip
    else:
        note = " (0.8.7 fixes recall that inserts lost during a vacuum)" if version < NEWEST_PGVECTOR else ""
        yield Finding("pgvector", "good", f"{shown}{note}")


def _models(connection: Connection) -> Iterator[Finding]:
    loading = {row["model"] for row in index_status(connection) if row["has_shadow"]}  # its finding is the index's
    for row in coverage_table(connection, exact=True):
        name = row["model"]
        if row["status"] == "building":
            yield Finding(
                f"model {name}",
                "warn",
                f"it is building: {row['missing']} contents have no vector, or its ingest was stopped",
                f"run that ingest again, or: pgimgsearch models fill {name}",
            )
        elif row["missing"] and name not in loading:
            what = f"{row['missing']} contents have no vector"
            yield Finding(f"model {name}", "warn", what, f"pgimgsearch models fill {name}")
        else:
            yield Finding(f"model {name}", "good", f"{row['embedded']} vectors")


def _indexes(connection: Connection) -> Iterator[Finding]:
    for row in index_status(connection):
        broken = row["method"] != "none" and not row["valid"]
        what, _, mend = (row["advice"] or row["method"]).partition(": ")
        yield Finding(f"index {row['model']}", "bad" if broken else "warn" if row["advice"] else "good", what, mend)


def _orphans(connection: Connection) -> Iterator[Finding]:
    if count := len(orphans(connection)):
        what = f"{count} have no image any more, as after a delete by SQL, and keep their vectors"
        yield Finding("contents", "warn", what, "pgimgsearch ingest ... --prune")


def _failures(connection: Connection) -> Iterator[Finding]:
    row = connection.execute("select count(*) from imgsearch.ingest_failure where kind = 'failed'").fetchone()
    if row and row[0]:
        yield Finding("failures", "warn", f"{row[0]} files failed", "select * from imgsearch.ingest_failure; "
                      "once they are fixed: pgimgsearch ingest ... --retry-failed")  # fmt: skip


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


def canary_findings(connection: Connection, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Load every stored model and compare its canary; one that cannot be loaded here is said to be unchecked."""
    from pgimgsearch.embeddings.registry import Loader, check_canary, open_model
    from pgimgsearch.models.encoder import Placement

    loader = Loader(Placement())
    for model in list_models(connection):
        name = f"canary {model.name}"
        try:
            distance = check_canary(connection, open_model(connection, model.name, checkpoint, loader=loader))
        except DriftError as error:
            yield Finding(name, "bad", str(error), error.hint or "")
        except ModelError as error:
            yield Finding(name, "warn", f"not checked: {error}", error.hint or "")
        else:
            told = "it was added without one" if distance is None else f"cosine distance {distance:.1e}"
            yield Finding(name, "good", told)
