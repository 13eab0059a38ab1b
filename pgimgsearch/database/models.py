"""What the database holds: models, collections and coverage. Statements here, never glued."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import BusyError, ModelError

DEFAULT_INDEX_SPEC: dict[str, Any] = {
    "method": "hnsw",
    "m": 16,
    "ef_construction": 64,
}  # of a new model; pgvector's own defaults


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A row of imgsearch.model; ``fingerprint`` is None until a model that was only declared is loaded."""

    model_id: int
    name: str
    slug: str
    dim: int
    storage: str
    backend: str
    checkpoint: str
    revision: str | None
    weights: str | None
    output: str
    preprocess: dict[str, Any]
    normalize: bool
    logit_scale: float | None
    logit_bias: float | None
    fingerprint: str | None
    full_dim: int | None
    has_text: bool
    licence: str | None
    index_method: str
    index_state: dict[str, Any]
    index_spec: dict[str, Any]
    ef_search: int
    near: float | None
    similar: float | None
    status: str
    partitions: int
    table_name: str
    view_name: str

    @property
    def table(self) -> sql.Identifier:
        """Its table, quoted."""
        return sql.Identifier("imgsearch", self.table_name)


@dataclass(frozen=True, slots=True)
class Canary:
    """Vectors of the four drawn images, and what made them: device, dtype, runtime and versions of software."""

    embeddings: list[list[float]]
    made_with: dict[str, str]


@dataclass(frozen=True, slots=True)
class StoredReduction:
    """A row of imgsearch.reduction; ``matrix`` is float32, little endian."""

    kind: str
    matrix: bytes
    recall: float | None


# The names of its table and view are those that SQL gives them.
COMPUTED = {"table_name": "imgsearch._embedding_table(m)", "view_name": "imgsearch._view_name(m)"}
MODEL_COLUMNS = sql.SQL(", ").join(
    sql.SQL("{} as {}").format(sql.SQL(COMPUTED[name]), sql.Identifier(name))
    if name in COMPUTED
    else sql.Identifier("m", name)
    for name in StoredModel.__slots__
)


def list_models(connection: Connection) -> list[StoredModel]:
    """Every stored model, by name."""
    query = sql.SQL("select {} from imgsearch.model m order by m.name").format(MODEL_COLUMNS)
    return connection.cursor(row_factory=class_row(StoredModel)).execute(query).fetchall()


def find_model(connection: Connection, name: str) -> StoredModel | None:
    """The stored model of a name or an alias."""
    query = sql.SQL(
        "select {} from imgsearch.model m left join imgsearch.alias a on a.model_id = m.model_id and a.alias = %s "
        "where m.name = %s or a.alias is not null order by m.name <> %s limit 1"
    ).format(MODEL_COLUMNS)
    return connection.cursor(row_factory=class_row(StoredModel)).execute(query, [name, name, name]).fetchone()


def get_model(connection: Connection, name: str) -> StoredModel:
    """The stored model of a name or an alias; raises ModelError with the names there are (as SQL does)."""
    row = connection.execute("select (imgsearch._resolve_model(%s)).name", [name]).fetchone()
    found = find_model(connection, row[0]) if row else None
    if found is None:
        raise ModelError(f"unknown model: {name}", hint="run: pgimgsearch models list")
    return found


def insert_model(
    connection: Connection,
    fields: dict[str, Any],
    canary: Canary | None = None,
    reduction: StoredReduction | None = None,
    *,
    aliases: Iterable[str] = (),
) -> StoredModel:
    """Insert a model row with what belongs to it, and make its table and view.

    The model becomes each of ``aliases`` that means nothing yet.
    """
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(hashtext('pgimgsearch.add_model'))")
        present = find_model(connection, fields["name"])
        if present is not None:  # another session was first
            return present
        values = fields | {"preprocess": Jsonb(fields["preprocess"])}
        insert = sql.SQL("insert into imgsearch.model (slug, {}) values (imgsearch._slug(%(name)s), {}) "
                         "returning model_id").format(
            sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(map(sql.Placeholder, values))
        )  # fmt: skip
        row = connection.execute(insert, values).fetchone()
        assert row is not None
        connection.execute("select imgsearch.create_embeddings(%s)", row)
        if canary is not None:
            _add_canary(connection, row[0], canary)
        if reduction is not None:
            connection.execute(
                "insert into imgsearch.reduction (model_id, kind, matrix, recall) values (%s, %s, %s, %s)",
                [row[0], reduction.kind, reduction.matrix, reduction.recall],
            )
        added = get_model(connection, fields["name"])
        claim_aliases(connection, added, aliases)
    return added


def claim_aliases(connection: Connection, model: StoredModel, aliases: Iterable[str]) -> None:
    """Point those of some aliases at a model that mean nothing yet."""
    for alias in aliases:
        connection.execute(
            "select imgsearch.set_alias(%s, %s) where not exists (select from imgsearch.alias where alias = %s)",
            [alias, model.name, alias],
        )


def complete_declaration(
    connection: Connection, model: StoredModel, fields: dict[str, Any], canary: Canary
) -> StoredModel:
    """Complete a model that was only declared, when it is loaded first. Returns what is stored then."""
    values = fields | {"preprocess": Jsonb(fields["preprocess"])}
    forms = {"near": sql.SQL("near = coalesce(near, %(near)s)")}
    assignments = sql.SQL(", ").join(
        forms.get(name) or sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in values
    )
    with connection.transaction():
        changed = connection.execute(
            sql.SQL("update imgsearch.model set {} where model_id = %(model_id)s and fingerprint is null").format(
                assignments
            ),
            values | {"model_id": model.model_id},
        ).rowcount
        if changed:  # else another session was first
            _add_canary(connection, model.model_id, canary)
        return get_model(connection, model.name)


def _add_canary(connection: Connection, model_id: int, canary: Canary) -> None:
    connection.execute(
        "insert into imgsearch.canary (model_id, embeddings, made_with) values (%s, %s, %s)",
        [model_id, canary.embeddings, Jsonb(canary.made_with)],
    )


def canary_of(connection: Connection, model: StoredModel) -> Canary | None:
    """The canary of a model; none where it was added without one."""
    query = "select embeddings, made_with from imgsearch.canary where model_id = %s"
    return connection.cursor(row_factory=class_row(Canary)).execute(query, [model.model_id]).fetchone()


def reduction_of(connection: Connection, model: StoredModel) -> StoredReduction | None:
    """What reduces a model's vectors, if anything."""
    query = "select kind, matrix, recall from imgsearch.reduction where model_id = %s"
    return connection.cursor(row_factory=class_row(StoredReduction)).execute(query, [model.model_id]).fetchone()


def remove_model(connection: Connection, name: str) -> StoredModel:
    """Drop a model with everything that belongs to it; aliases must have moved before, and nobody be filling it."""
    model = get_model(connection, name)
    if locks.is_locked(connection, locks.FILL, model.model_id):
        raise BusyError(f"another session fills {model.name}", hint="stop it first")
    connection.execute("select imgsearch.drop_model(%s)", [model.name])
    return model


def discard_model(connection: Connection, model: StoredModel) -> None:
    """Drop a model that was only just added, with the aliases that it got by that."""
    with connection.transaction():
        connection.execute("delete from imgsearch.alias where model_id = %s", [model.model_id])
        connection.execute("select imgsearch.drop_model(%s)", [model.name])


def list_aliases(connection: Connection) -> dict[str, str]:
    """Alias -> model name."""
    return dict(
        connection.execute(
            "select a.alias, m.name from imgsearch.alias a join imgsearch.model m using (model_id) order by 1"
        ).fetchall()
    )


@dataclass(frozen=True, slots=True)
class Coverage:
    """Contents that images show, those with a vector, those in which the model finds too little, and the rest."""

    contents: int
    embedded: int
    skipped: int
    missing: int


def count_coverage(connection: Connection, model: StoredModel) -> Coverage:
    """Counted, not estimated."""
    found = connection.cursor(row_factory=class_row(Coverage)).execute(
        "select k.* from imgsearch.model m, imgsearch._coverage(m) k where m.model_id = %s", [model.model_id]
    )
    row = found.fetchone()
    assert row is not None
    return row


def coverage_table(connection: Connection, *, exact: bool) -> list[dict[str, Any]]:
    """What each model covers (see the SQL function)."""
    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute("select * from imgsearch.coverage(exact => %s)", [exact]).fetchall()


def count_embeddings(connection: Connection, model: StoredModel) -> int:
    """How many contents a model has a vector of."""
    row = connection.execute(sql.SQL("select count(*) from {}").format(model.table)).fetchone()
    assert row is not None
    return int(row[0])


def set_status(connection: Connection, model: StoredModel, status: str) -> None:
    """Mark a model building, ready or retired."""
    connection.execute("update imgsearch.model set status = %s where model_id = %s", [status, model.model_id])


def set_weights(connection: Connection, model: StoredModel, path: str | None) -> None:
    """Note where a model's local weights are now."""
    connection.execute("update imgsearch.model set weights = %s where model_id = %s", [path, model.model_id])
