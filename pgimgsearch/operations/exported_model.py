"""A model as an export describes it, and as an import adds it: by named fields, and no place to load from."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import psycopg

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import (
    Canary,
    StoredModel,
    StoredReduction,
    canary_of,
    find_model,
    get_model,
    insert_model,
    reduction_of,
)  # fmt: skip
from pgimgsearch.embeddings.registry import suitable_aliases
from pgimgsearch.errors import DriftError, SourceError
from pgimgsearch.models import catalog
from pgimgsearch.models.backends import backends

PLACE = re.compile(r"[/~]|.*(://|\.\./|\0)|local-dir:|[a-zA-Z]:\\")  # a path or a URL
FORMAT, FORMATS, KEY = 3, {1, 2, 3}, b"pgimgsearch"
LONGEST_NAME = 500
MODEL_FIELDS = (
    "name", "dim", "storage", "backend", "checkpoint", "revision", "output", "preprocess", "normalize", "logit_scale",
    "logit_bias", "fingerprint", "full_dim", "has_text", "licence", "near", "similar", "ef_search", "index_spec",
)  # fmt: skip


def describe_model(connection: Connection, model: StoredModel) -> dict[bytes, bytes]:
    """What an import needs of a model, as it stands in the file's metadata."""
    canary, reduction = canary_of(connection, model), reduction_of(connection, model)
    kept = asdict(reduction) if reduction else None
    if kept:
        kept["matrix"] = base64.b64encode(kept["matrix"]).decode()
    fields = asdict(model)
    described = {"format": FORMAT, "model": {name: fields[name] for name in MODEL_FIELDS},
                 "canary": asdict(canary) if canary else None, "reduction": kept}  # fmt: skip
    return {KEY: json.dumps(described).encode()}


def read_description(metadata: Mapping[bytes, bytes], place: str) -> dict[str, Any]:
    """What a file says of its model; raises SourceError for one that is no export."""
    try:
        described = json.loads(metadata.get(KEY, b"{}"))
        if described.get("format") == 1:  # of versions before the first release
            described["model"]["index_spec"] = described["model"].pop("index_wanted")
            (described["reduction"] or {}).pop("mean", None)
        known = described.get("format") in FORMATS and {"model", "canary", "reduction"} <= described.keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise SourceError(
            f"{place} is no export of embeddings", hint="make one: pgimgsearch export FILE.parquet --model NAME; "
            "images in Parquet go by: pgimgsearch ingest FILE.parquet --model NAME"
        )  # fmt: skip
    return dict(described)


def _fields(described: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that describe a model, and no others; raises SourceError for a checkpoint that is a path or a URL."""
    try:
        fields = {name: described[name] for name in MODEL_FIELDS}
        name, checkpoint = fields["name"], str(fields["checkpoint"])
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
            raise TypeError(f"{name!r:.100} is no name")
        if not isinstance(fields["dim"], int) or not all(
            isinstance(fields[one], str) for one in ("storage", "backend")
        ):
            raise TypeError("its dimension is no number, or its storage or backend no word")
    except (KeyError, TypeError) as error:
        raise SourceError(f"the export does not describe its model: {error}", hint="export it again") from error
    known = {spec.checkpoint for spec in catalog.CATALOG if spec.backend == fields["backend"]}
    if fields["backend"] not in backends() or (checkpoint not in known and PLACE.match(checkpoint)):
        raise SourceError(
            f"the export names a checkpoint that is not loaded: {fields['backend']}, {checkpoint}",
            hint="a model comes from the catalog, from a repository ORGANISATION/NAME, or from --weights",
        )
    return fields


def exported_model(connection: Connection, described: dict[str, Any]) -> StoredModel:
    """The model of an export as it is stored, added where it is new."""
    fields = _fields(described["model"])
    stored = find_model(connection, fields["name"])
    if stored is None:
        stored = _insert(connection, fields, described)
    if (stored.fingerprint, stored.dim, stored.storage) != (fields["fingerprint"], fields["dim"], fields["storage"]):
        raise DriftError(
            f"model {stored.name} is here with other weights, preprocessing or storage than in the export",
            hint="vectors of both cannot be compared; import into another database, or remove the model here: "
            f"pgimgsearch models remove {stored.name}",
        )
    return stored


def _insert(connection: Connection, fields: dict[str, Any], described: dict[str, Any]) -> StoredModel:
    wanted, reduction = fields.pop("index_spec"), described["reduction"]
    try:
        if reduction:
            reduction["matrix"] = base64.b64decode(reduction["matrix"])
        with connection.transaction():
            stored = insert_model(
                connection,
                fields | {"metric": "hamming" if fields["storage"] == "bit" else "cosine"},
                Canary(**described["canary"]) if described["canary"] else None,
                StoredReduction(**reduction) if reduction else None,
                aliases=suitable_aliases(fields["backend"], has_text=fields["has_text"]),
            )
            connection.execute("select imgsearch.set_index(%s, %s, %s, %s)",
                               [stored.name, wanted["method"], wanted["m"], wanted["ef_construction"]])  # fmt: skip
    except (KeyError, TypeError, ValueError, psycopg.Error) as error:
        if isinstance(error, psycopg.OperationalError):  # the server's, not the export's
            raise
        raise SourceError(f"the export does not describe its model: {error}", hint="export it again") from error
    return get_model(connection, stored.name)
