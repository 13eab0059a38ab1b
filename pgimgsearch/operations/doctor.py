"""Where database, catalog and code differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psycopg.rows import dict_row

from pgimgsearch.database import functions as bundles
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection, current_revision, vector_schema
from pgimgsearch.indexing import build as index
from pgimgsearch.indexing import status as index_status
from pgimgsearch.models import catalog

# Columns, constraints, indexes and policies of our tables; those of models are looked at one by one.
LISTED = """
with ours as (
    select c.oid, c.relname, c.relrowsecurity from pg_class c
    where c.relnamespace = 'imgsearch'::regnamespace and c.relkind = 'r' and c.relname !~ '^embeddings?_')
select format('column %s.%s %s%s', c.relname, a.attname,
              replace(format_type(a.atttypid, a.atttypmod), {schema} || '.', ''),
              case when a.attnotnull then ' not null' else '' end)
from ours c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
union all select format('constraint %s: %s', c.relname, pg_get_constraintdef(k.oid))
from ours c join pg_constraint k on k.conrelid = c.oid and k.contype <> 'n'
union all select format('index %s', regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE |imgsearch[.]', '', 'g'))
from ours c join pg_index i on i.indrelid = c.oid
union all select format('row security of %s: %s', c.relname, c.relrowsecurity) from ours c where c.relrowsecurity
union all select format('policy %s of %s', p.polname, c.relname) from ours c join pg_policy p on p.polrelid = c.oid
order by 1
"""
MODEL_PARTS = """
select to_regclass('imgsearch.images_' || m.slug) is not null as view, coalesce(t.relrowsecurity, false) as security,
       (select count(*) from pg_policy p where p.polrelid = t.oid
        and p.polname in ('read', 'add', 'change', 'remove')) = 4 as policies,
       exists (select from pg_constraint k where k.conrelid = t.oid
               and k.confrelid = 'imgsearch.content'::regclass) as "foreign key"
from imgsearch.model m join pg_class t on t.oid = m.embeddings where m.model_id = %s
"""
OURS = """
select n.function, p.prosrc from unnest(%s::text[]) with ordinality n (function, number)
left join pg_proc p on p.oid = to_regprocedure(n.function) order by n.number
"""
STRANGE = """
select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'imgsearch'::regnamespace
and p.oid <> all(select to_regprocedure(n)::oid from unnest(%s::text[]) n where to_regprocedure(n) is not null)
and p.proname !~ '^_bits_'  -- of an index
and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
"""
AGAIN = "pgimgsearch db upgrade --functions"
COLUMN_TYPE = """
select format_type(a.atttypid, a.atttypmod) from pg_attribute a
where a.attrelid = to_regclass(%s) and a.attname = 'embedding'
"""
ORPHANS = """
select c.relname from pg_class c where c.relnamespace = 'imgsearch'::regnamespace and c.relkind in ('r', 'p')
and c.relname ~ '^embedding_' and not exists (select from imgsearch.model m where m.embeddings = c.oid)
"""
LEFTOVERS = """
select c.relname, c.relkind = 'i' from pg_class c where c.relnamespace = 'imgsearch'::regnamespace
and c.relkind in ('i', 'I') and not c.relispartition
and c.relname ~ '^embeddings?_.*_(hnsw|bits|ivf|disk)_(new|old)$'
"""


TABLES_LEFT = """
select m.name, c.relname, c.relname ~ '_aside$' from imgsearch.model m join pg_class c
on c.relnamespace = 'imgsearch'::regnamespace and c.relname ~ format('^embeddings_%s_(aside|old)$', m.model_id)
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
    lost, strange = [*_lost_tables(connection), *_lost_functions(connection)], list(_strange_functions(connection))
    if lost:  # what follows asks these tables and functions
        return [*lost, *strange]
    return [*strange, *_models(connection), *_indexes(connection), *_catalog(connection)]


def listed(connection: Connection) -> list[str]:
    """Every column, constraint, index and policy of our tables, a line each, whatever the search path is."""
    schema = "'" + vector_schema(connection).replace("'", "''") + "'"
    with connection.transaction():
        connection.execute("set local search_path = pg_catalog")
        return [row[0] for row in connection.execute(LISTED.format(schema=schema)).fetchall()]


def _lost_tables(connection: Connection) -> Iterator[Difference]:
    """What is lost or changed. An application may add columns, indexes and policies of its own."""
    for line in sorted(set(bundles.listing_path().read_text().splitlines()) - set(listed(connection))):
        yield Difference("schema", f"not there, or another: {line}", "restore it from a dump, or by hand")


def _lost_functions(connection: Connection) -> Iterator[Difference]:
    bodies = bundles.bodies(_release(connection))
    for function, source in connection.execute(OURS, [_headers(connection)]).fetchall():
        name, _, types = function.removesuffix(")").partition("(")
        if source is None:
            yield Difference("schema", f"the function {function} is not there", AGAIN)
        elif bodies.get((name, types), source) != source:
            yield Difference("schema", f"the function {name} is not that of this release", AGAIN)


def _strange_functions(connection: Connection) -> Iterator[Difference]:
    """Functions beside ours, which may make calls of ours ambiguous; those of an extension are none."""
    for (signature,) in connection.execute(STRANGE, [_headers(connection)]).fetchall():
        yield Difference("schema", f"the function {signature} is no part of this release", f"drop function {signature}")


def _headers(connection: Connection) -> list[str]:
    return [f"{name}({types})" for name, types in bundles.signatures(_release(connection)).values()]


def _release(connection: Connection) -> str:
    """The functions of this release, as they are in this database."""
    return bundles.current_functions().replace("@vector@", vector_schema(connection))


def _models(connection: Connection) -> Iterator[Difference]:
    for model in store.models(connection):
        wanted = f"{model.storage}({model.dim})"
        row = connection.execute(COLUMN_TYPE, [f"imgsearch.{model.table_name}"]).fetchone()
        if row is None:
            yield Difference("model", f"{model.name} has no table {model.table_name}",
                             f"select imgsearch.create_embeddings({model.model_id}), and pgimgsearch models fill "
                             f"{model.name}")  # fmt: skip
        elif row[0].rpartition(".")[2] != wanted:
            yield Difference("model", f"{model.table_name} holds {row[0]}, and {model.name} has {wanted}",
                             f"pgimgsearch models remove {model.name}, and add it again")  # fmt: skip
        parts = connection.cursor(row_factory=dict_row).execute(MODEL_PARTS, [model.model_id]).fetchone() or {}
        if lost := [part for part, there in parts.items() if not there]:
            yield Difference("model", f"{model.table_name} has lost its {', '.join(lost)}",
                             f"select imgsearch.create_embeddings({model.model_id})")  # fmt: skip
        if model.fingerprint is None:
            yield Difference("model", f"{model.name} is declared, and was never loaded",
                             f"pgimgsearch models fill {model.name}")  # fmt: skip
    for (table,) in connection.execute(ORPHANS).fetchall():
        yield Difference("model", f"the table {table} belongs to no model", f"drop table imgsearch.{table}")
    serving = set(store.aliases(connection).values())
    beside = {name for name, _, is_aside in connection.execute(TABLES_LEFT).fetchall() if is_aside}
    for covered in store.coverage(connection, exact=False):
        if covered["model"] in beside:
            continue  # they may be there, which the index says
        if (covered["status"] == "ready" or covered["model"] in serving) and covered["missing"]:
            yield Difference(
                "model", f"{covered['model']} misses about {covered['missing']} of {covered['contents']} contents",
                f"pgimgsearch models fill {covered['model']}; of files gone for good: pgimgsearch ingest DIR --prune",
            )  # fmt: skip


def _indexes(connection: Connection) -> Iterator[Difference]:
    valid = {row["model"] for row in index_status.status(connection) if row["valid"]}
    serving = set(store.aliases(connection).values())
    for model in store.models(connection):
        build = f"pgimgsearch index build {model.name} --concurrently"
        if model.index_method != "none" and model.name not in valid:
            yield Difference("index", f"the index of {model.name} is not there, or not valid", build)
        elif not index.is_fulfilled(model) and (model.status == "ready" or model.name in serving):
            yield Difference("index", f"the index of {model.name} is not as it is wanted", build)
    for model_name, table, beside in connection.execute(TABLES_LEFT).fetchall():
        what = "holds vectors that are not in use yet, unless an ingest is at it" if beside else "is left of a swap"
        mend = f"pgimgsearch index build {model_name}" if beside else f"drop table imgsearch.{table}"
        yield Difference("index", f"{table} {what}", mend)
    for name, alone in connection.execute(LEFTOVERS).fetchall():
        yield Difference("index", f"{name} is left of a build that was killed, unless one is running",
                         f"drop index {'concurrently ' if alone else ''}imgsearch.{name}")  # fmt: skip


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
    from tempfile import TemporaryDirectory

    from pgimgsearch.database.connection import connect
    from pgimgsearch.database.url import database_url
    from pgimgsearch.settings import Settings

    with TemporaryDirectory() as fresh, database_url(Settings(home=Path(fresh))) as url, connect(url) as opened:
        print("\n".join(listed(opened)))
