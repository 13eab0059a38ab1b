"""Where database, catalog and code differ."""

from collections.abc import Iterator
from dataclasses import dataclass

from pgimgsearch.database import bundles, index, store
from pgimgsearch.database.connection import Connection, current_revision, vector_schema
from pgimgsearch.models import catalog

# Tables of models are not listed: they are looked at one by one.
COLUMNS = """
select format('%s.%s %s%s', c.relname, a.attname,
              replace(format_type(a.atttypid, a.atttypmod), {schema} || '.', ''),
              case when a.attnotnull then ' not null' else '' end)
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'imgsearch'::regnamespace and c.relkind in ('r', 'p')
    and not exists (select from imgsearch.model m where m.embeddings = c.oid)
    and c.relname !~ '^embedding_'
order by 1
"""
COLUMN_TYPE = """
select format_type(a.atttypid, a.atttypmod) from pg_attribute a
where a.attrelid = to_regclass(%s) and a.attname = 'embedding'
"""
ORPHANS = """
select c.relname from pg_class c where c.relnamespace = 'imgsearch'::regnamespace and c.relkind = 'r'
and c.relname ~ '^embedding_' and not exists (select from imgsearch.model m where m.embeddings = c.oid)
"""
LEFTOVERS = """
select c.relname from pg_class c where c.relnamespace = 'imgsearch'::regnamespace and c.relkind = 'i'
and c.relname ~ '_hnsw_(new|old)$'
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs, and the command that mends it. ``where`` is schema, model, index or catalog."""

    where: str
    what: str
    mend: str


def check(connection: Connection) -> list[Difference]:
    """All differences; none is good news."""
    revision, newest = current_revision(connection), bundles.head_revision()
    if revision != newest:
        return [Difference("schema", f"the database is at revision {revision}, this release needs {newest}",
                           "pgimgsearch db upgrade")]  # fmt: skip
    return [*_schema(connection), *_models(connection), *_indexes(connection), *_catalog(connection)]


def columns(connection: Connection) -> list[str]:
    """Every column of our tables: ``table.column type``, and whether it may be null."""
    schema = "'" + vector_schema(connection).replace("'", "''") + "'"
    rows = connection.execute(COLUMNS.format(schema=schema)).fetchall()
    return [row[0] for row in rows]


def _schema(connection: Connection) -> Iterator[Difference]:
    listed, found = set(bundles.columns_path().read_text().splitlines()), set(columns(connection))
    for line in sorted(listed - found):
        yield Difference("schema", f"a column is not there, or another: {line}", "restore it from a dump, or by hand")
    for line in sorted(found - listed):
        yield Difference("schema", f"a column is no part of this release: {line}", "keep your own in a schema of yours")
    text = bundles.current_functions().replace("@vector@", vector_schema(connection))
    present: dict[str, str] = dict(
        connection.execute(
            "select p.oid::regprocedure::text, p.prosrc from pg_proc p where p.pronamespace = 'imgsearch'::regnamespace"
        ).fetchall()
    )
    expected = bundles.bodies(text)
    for name, types in bundles.signatures(text).values():
        row = connection.execute("select to_regprocedure(%s)::text", [f"{name}({types})"]).fetchone()
        signature = row[0] if row else None
        if signature is None or signature not in present:
            yield Difference(
                "schema", f"the function {name}({types}) is not there", "pgimgsearch db upgrade --functions"
            )
        elif (name, types) in expected and present[signature] != expected[name, types]:
            yield Difference("schema", f"the function {name} is not that of this release",
                             "pgimgsearch db upgrade --functions")  # fmt: skip


def _models(connection: Connection) -> Iterator[Difference]:
    for model in store.models(connection):
        wanted = f"{model.storage}({model.dim})"
        row = connection.execute(COLUMN_TYPE, [f"imgsearch.{model.table_name}"]).fetchone()
        if row is None:
            yield Difference("model", f"{model.name} has no table {model.table_name}",
                             f"pgimgsearch models remove {model.name}, and add it again")  # fmt: skip
        elif row[0].rpartition(".")[2] != wanted:
            yield Difference("model", f"{model.table_name} holds {row[0]}, and {model.name} has {wanted}",
                             f"pgimgsearch models remove {model.name}, and add it again")  # fmt: skip
        if model.fingerprint is None:
            yield Difference("model", f"{model.name} is declared, and was never loaded",
                             f"pgimgsearch models fill {model.name}")  # fmt: skip
    for (table,) in connection.execute(ORPHANS).fetchall():
        yield Difference("model", f"the table {table} belongs to no model", f"drop table imgsearch.{table}")
    serving = set(store.aliases(connection).values())
    for covered in store.coverage(connection, exact=False):
        if (covered["status"] == "ready" or covered["model"] in serving) and covered["missing"]:
            yield Difference(
                "model", f"{covered['model']} misses about {covered['missing']} of {covered['contents']} contents",
                f"pgimgsearch models fill {covered['model']}",
            )  # fmt: skip


def _indexes(connection: Connection) -> Iterator[Difference]:
    valid = {row["model"] for row in index.status(connection) if row["valid"]}
    serving = set(store.aliases(connection).values())
    for model in store.models(connection):
        build = f"pgimgsearch index build {model.name} --concurrently"
        if model.index_method != "none" and model.name not in valid:
            yield Difference("index", f"the index of {model.name} is not there, or not valid", build)
        elif not index.is_fulfilled(model) and (model.status == "ready" or model.name in serving):
            yield Difference("index", f"the index of {model.name} is not as it is wanted", build)
    for (name,) in connection.execute(LEFTOVERS).fetchall():
        yield Difference("index", f"{name} is left of a build that was killed, unless one is running",
                         f"drop index imgsearch.{name}")  # fmt: skip


def _catalog(connection: Connection) -> Iterator[Difference]:
    """Models by a name of the catalog that this release would load from elsewhere: their vectors stay comparable."""
    for model in store.models(connection):
        base, _, output = model.name.partition("@")
        spec = catalog.find(base)
        if spec is None or model.weights is not None or output:
            continue
        for what in ("checkpoint", "output"):
            ours, stored = getattr(spec, what), getattr(model, what)
            if ours not in {stored, "auto"}:
                yield Difference(
                    "catalog", f"the {what} of {model.name} is {stored}, and {ours} in this release",
                    f"nothing has to be done; to take it: pgimgsearch models add {base} --as {base}-2",
                )  # fmt: skip


if __name__ == "__main__":
    from pgimgsearch.database.address import database_url
    from pgimgsearch.database.connection import connect
    from pgimgsearch.settings import Settings, default_home

    with database_url(Settings(home=default_home())) as url, connect(url) as opened:
        print("\n".join(columns(opened)))
