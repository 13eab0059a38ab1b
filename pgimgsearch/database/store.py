"""What the database holds: models, collections, text vectors and coverage. Statements here, never glued."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.errors import ModelError, SourceError

COPY_DETECTORS = {"pdq"}  # made to tell copies from look-alikes, so the first of them answers for duplicates
LONGEST_SLUG = 40  # embedding_<slug>_<dim> and the names of its constraints fit 63 bytes


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A row of imgsearch.model; ``embeddings`` is the qualified name of its table."""

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
    fingerprint: str
    full_dim: int | None
    has_text: bool
    licence: str | None
    index_method: str
    index_parameters: dict[str, Any]
    ef_search: int
    near: float | None
    similar: float | None
    status: str

    @property
    def table(self) -> sql.Identifier:
        """Its table, quoted."""
        return sql.Identifier("imgsearch", self.table_name)

    @property
    def table_name(self) -> str:
        """The name of its table, without the schema."""
        return f"embedding_{self.slug}_{self.dim}"

    @property
    def view_name(self) -> str:
        """The qualified name of its view."""
        return f"imgsearch.images_{self.slug}"


@dataclass(frozen=True, slots=True)
class Canary:
    """Vectors of the four drawn pictures, and what made them: device, dtype, runtime and versions of software."""

    embeddings: list[list[float]]
    made_with: dict[str, str]


@dataclass(frozen=True, slots=True)
class StoredReduction:
    """A row of imgsearch.reduction; ``matrix`` and ``mean`` are float32, little endian."""

    kind: str
    matrix: bytes
    mean: bytes
    recall: float | None


MODEL_COLUMNS = sql.SQL(", ").join(sql.Identifier("m", name) for name in StoredModel.__slots__)


def slug_of(name: str) -> str:
    """A model's name as part of a table's name: [a-z0-9_], cut with a hash tail where it is long."""
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return slug if len(slug) <= LONGEST_SLUG else f"{slug[: LONGEST_SLUG - 9]}_{zlib.crc32(name.encode()):08x}"


def models(connection: Connection) -> list[StoredModel]:
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


def add_model(
    connection: Connection,
    fields: dict[str, Any],
    canary: Canary | None = None,
    reduction: StoredReduction | None = None,
) -> StoredModel:
    """Insert a model row with what belongs to it, make its table and view, and give it the aliases nobody has yet."""
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(hashtext('pgimgsearch.add_model'))")
        present = find_model(connection, fields["name"])
        if present is not None:  # another session was first
            return present
        slug = slug_of(fields["name"])
        if connection.execute("select 1 from imgsearch.model where slug = %s", [slug]).fetchone():
            slug = slug_of(f"{slug[:30]}_{zlib.crc32(fields['name'].encode()):08x}")
        values = fields | {"slug": slug, "preprocess": Jsonb(fields["preprocess"])}
        insert = sql.SQL("insert into imgsearch.model ({}) values ({}) returning model_id").format(
            sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(map(sql.Placeholder, values))
        )
        row = connection.execute(insert, values).fetchone()
        assert row is not None
        connection.execute("select imgsearch.create_embeddings(%s)", row)
        if canary is not None:
            connection.execute(
                "insert into imgsearch.canary (model_id, embeddings, made_with) values (%s, %s, %s)",
                [row[0], canary.embeddings, Jsonb(canary.made_with)],
            )
        if reduction is not None:
            connection.execute(
                "insert into imgsearch.reduction (model_id, kind, matrix, mean, recall) values (%s, %s, %s, %s, %s)",
                [row[0], reduction.kind, reduction.matrix, reduction.mean, reduction.recall],
            )
        wanted = {"default": True, "text": fields["has_text"], "duplicates": fields["backend"] in COPY_DETECTORS}
        for alias in [alias for alias, fits in wanted.items() if fits]:
            connection.execute(
                "select imgsearch.set_alias(%s, %s) where not exists (select from imgsearch.alias where alias = %s)",
                [alias, fields["name"], alias],
            )
    return get_model(connection, fields["name"])


def canary_of(connection: Connection, model: StoredModel) -> Canary | None:
    """The canary of a model; none where it was added without one."""
    query = "select embeddings, made_with from imgsearch.canary where model_id = %s"
    return connection.cursor(row_factory=class_row(Canary)).execute(query, [model.model_id]).fetchone()


def reduction_of(connection: Connection, model: StoredModel) -> StoredReduction | None:
    """What reduces a model's vectors, if anything."""
    query = "select kind, matrix, mean, recall from imgsearch.reduction where model_id = %s"
    return connection.cursor(row_factory=class_row(StoredReduction)).execute(query, [model.model_id]).fetchone()


def remove_model(connection: Connection, name: str) -> StoredModel:
    """Drop a model with everything that belongs to it; aliases must have moved before."""
    model = get_model(connection, name)
    connection.execute("select imgsearch.drop_model(%s)", [model.name])
    return model


def discard_model(connection: Connection, model: StoredModel) -> None:
    """Drop a model that was only just added, with the aliases that it got by that."""
    with connection.transaction():
        connection.execute("delete from imgsearch.alias where model_id = %s", [model.model_id])
        connection.execute("select imgsearch.drop_model(%s)", [model.name])


def aliases(connection: Connection) -> dict[str, str]:
    """Alias -> model name."""
    return dict(
        connection.execute(
            "select a.alias, m.name from imgsearch.alias a join imgsearch.model m using (model_id) order by 1"
        ).fetchall()
    )


def coverage(connection: Connection, *, exact: bool) -> list[dict[str, Any]]:
    """What each model covers (see the SQL function)."""
    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute("select * from imgsearch.coverage(exact => %s)", [exact]).fetchall()


def count_embeddings(connection: Connection, model: StoredModel) -> int:
    """How many contents a model has a vector of."""
    row = connection.execute(sql.SQL("select count(*) from {}").format(model.table)).fetchone()
    assert row is not None
    return int(row[0])


def owns(connection: Connection, model: StoredModel) -> bool:
    """Whether this role may index a model's table."""
    row = connection.execute(
        "select pg_has_role(relowner, 'usage') from pg_class where oid = %s::regclass",
        [f"imgsearch.{model.table_name}"],
    ).fetchone()
    return row == (True,)


def set_status(connection: Connection, model: StoredModel, status: str) -> None:
    """Mark a model building, ready or retired."""
    connection.execute("update imgsearch.model set status = %s where model_id = %s", [status, model.model_id])


def set_weights(connection: Connection, model: StoredModel, path: str | None) -> None:
    """Note where a model's local weights are now."""
    connection.execute("update imgsearch.model set weights = %s where model_id = %s", [path, model.model_id])


def open_collection(
    connection: Connection, name: str | None, root: str | None, default_name: str
) -> tuple[int, str, str]:
    """Find or make the collection that a root belongs to. Returns (collection_id, name, its root).

    Without a name, the collection with the deepest root at or above ``root`` is taken, else one is made.
    """
    if name is None and root is not None:
        found = connection.execute(
            "select collection_id, name, root from imgsearch.collection "
            "where %s = root or starts_with(%s, rtrim(root, '/') || '/') order by length(root) desc limit 1",
            [root, root],
        ).fetchone()
        if found:
            return found[0], found[1], found[2]
    wanted = name or default_name
    found = connection.execute(
        "select collection_id, name, coalesce(root, '') from imgsearch.collection where name = %s", [wanted]
    ).fetchone()
    if found:
        if root is not None and root != found[2] and not root.startswith(found[2].rstrip("/") + "/"):
            raise SourceError(
                f"collection {wanted} has its root at {found[2] or '(none)'}, and {root} is not below it",
                hint=f"choose another with --collection, or move it: update imgsearch.collection set root = '...' "  # noqa: S608
                f"where name = '{wanted}'",
            )
        return found[0], found[1], found[2]
    row = connection.execute(
        "insert into imgsearch.collection (name, root) values (%s, %s) returning collection_id",
        [wanted, root],
    ).fetchone()
    assert row is not None
    return row[0], wanted, root or ""


def can_cache(connection: Connection) -> bool:
    """Whether this role may write to the cache of texts; a reader may not."""
    row = connection.execute("select has_table_privilege('imgsearch.text_embedding', 'insert, update')").fetchone()
    return row == (True,)


def missing_texts(connection: Connection, model: StoredModel, texts: Sequence[str], template: str = "{}") -> list[str]:
    """Those texts whose vectors are not cached, each once; the others count as used just now, where we may say so."""
    if can_cache(connection):
        connection.execute(
            "update imgsearch.text_embedding t set used_at = clock_timestamp() "
            "where t.model_id = %s and t.key in (select imgsearch.text_key(q, %s) from unnest(%s::text[]) q)",
            [model.model_id, template, list(texts)],
        )
    rows = connection.execute(
        "select q from unnest(%s::text[]) with ordinality as n (q, number) where not exists (select "
        "from imgsearch.text_embedding t where t.model_id = %s and t.key = imgsearch.text_key(q, %s)) order by number",
        [list(texts), model.model_id, template],
    ).fetchall()
    return list(dict.fromkeys(row[0] for row in rows))


def cache_texts(
    connection: Connection, model: StoredModel, texts: Sequence[str], vectors: Any, template: str = "{}"
) -> None:
    """Keep the vectors of texts in a template; ``vectors`` is (n, dim) float32."""
    statement = sql.SQL("select imgsearch.cache_text(%s, %s::real[]::{}.vector, %s, %s)").format(
        sql.SQL(vector_schema(connection))
    )
    rows = [[text, vector.tolist(), model.name, template] for text, vector in zip(texts, vectors, strict=True)]
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(statement, rows)
