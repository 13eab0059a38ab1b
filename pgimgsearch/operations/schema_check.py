"""Where the database differs from this release: tables, functions, what belongs to each model, and the catalog."""

from collections.abc import Iterator
from pathlib import Path

from psycopg import sql
from psycopg.rows import dict_row

from pgimgsearch.database import functions
from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.functions import current_functions, signatures, tables_path
from pgimgsearch.database.models import list_models
from pgimgsearch.models import lookup
from pgimgsearch.operations.finding import Finding

# Columns, constraints, indexes and policies of our tables; those of models are looked at one by one.
OUR_TABLES = """
with ours as (
    select c.oid, c.relname, c.relrowsecurity from pg_class c
    where c.relnamespace = 'imgsearch'::regnamespace and c.relkind = 'r' and c.relname !~ '^embedding_')
"""
LISTED = (  # what each table has, a line each; {schema} is that of the extension
    """select format('column %s.%s %s%s', c.relname, a.attname,
                     replace(format_type(a.atttypid, a.atttypmod), {schema} || '.', ''),
                     case when a.attnotnull then ' not null' else '' end)
       from ours c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped""",
    """select format('constraint %s: %s', c.relname, pg_get_constraintdef(k.oid))
       from ours c join pg_constraint k on k.conrelid = c.oid and k.contype <> 'n'""",
    """select format('index %s', regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE |imgsearch[.]', '', 'g'))
       from ours c join pg_index i on i.indrelid = c.oid""",
    "select format('row security of %s: %s', relname, relrowsecurity) from ours where relrowsecurity",
    "select format('policy %s of %s', p.polname, c.relname) from ours c join pg_policy p on p.polrelid = c.oid",
)
MODEL_PARTS = """
select to_regclass(format('imgsearch.%%I', imgsearch._view_name(m))) is not null as view,
       coalesce(t.relrowsecurity, false) as security,
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
select regexp_replace(format_type(a.atttypid, a.atttypmod), '^.*[.]', '') from pg_attribute a
where a.attrelid = to_regclass(%s) and a.attname = 'embedding'
"""
ORPHANS = """
select c.relname from pg_class c where c.relnamespace = 'imgsearch'::regnamespace and c.relkind in ('r', 'p')
and c.relname ~ '^embedding_' and not c.relispartition and not exists (
    select from imgsearch.model m where m.embeddings = c.oid
    or c.relname in (imgsearch._embedding_table(m, 'shadow'), imgsearch._embedding_table(m, 'retired')))
"""
LEFTOVERS = """
select i.name, not i.over_partitions from imgsearch.model m, imgsearch._indexes(m.embeddings) i
join pg_class c on c.relname = i.name and c.relnamespace = 'imgsearch'::regnamespace
where i.stage <> '' and not c.relispartition  -- those of partitions go with the whole
"""
OTHER_TABLES = """
select m.name, t.name, r.role from imgsearch.model m, unnest(array['shadow', 'retired']) r (role),
imgsearch._embedding_table(m, r.role) t (name) where to_regclass(format('imgsearch.%I', t.name)) is not null
"""


def schema_findings(connection: Connection) -> Iterator[Finding]:
    """What differs; where tables or functions are lost, nothing that would need them is looked at."""
    lost = [*_lost_tables(connection), *_lost_functions(connection)]
    yield from lost
    yield from _other_functions(connection)
    if not lost:
        yield from _models(connection)
        yield from _indexes(connection)
        yield from _catalog(connection)


def list_tables(connection: Connection) -> list[str]:
    """Every column, constraint, index and policy of our tables, a line each, whatever the search path is."""
    schema = sql.Literal(vector_schema(connection))
    with connection.transaction():
        connection.execute("set local search_path = pg_catalog")
        queries = [sql.SQL(OUR_TABLES + query).format(schema=schema) for query in LISTED]
        return sorted(row[0] for query in queries for row in connection.execute(query).fetchall())


def _lost_tables(connection: Connection) -> Iterator[Finding]:
    """What is lost or changed. An application may add columns, indexes and policies of its own."""
    for line in sorted(set(tables_path().read_text().splitlines()) - set(list_tables(connection))):
        yield Finding("schema", "bad", f"missing or changed: {line}", "restore it from a dump, or by hand")


def _lost_functions(connection: Connection) -> Iterator[Finding]:
    bodies = functions.bodies(_release(connection))
    for function, source in connection.execute(OURS, [_headers(connection)]).fetchall():
        name, _, types = function.removesuffix(")").partition("(")
        if source is None:
            yield Finding("schema", "bad", f"missing function: {function}", AGAIN)
        elif bodies.get((name, types), source) != source:
            yield Finding("schema", "bad", f"changed function: {function}", AGAIN)


def _other_functions(connection: Connection) -> Iterator[Finding]:
    """Functions beside ours, which may make calls of ours ambiguous; those of an extension are fine."""
    for (signature,) in connection.execute(STRANGE, [_headers(connection)]).fetchall():
        yield Finding("schema", "warn", f"function of an earlier release or your own: {signature}",
                      f"drop function {signature}")  # fmt: skip


def _headers(connection: Connection) -> list[str]:
    return [f"{name}({types})" for name, types in signatures(_release(connection))]


def _release(connection: Connection) -> str:
    """The functions of this release, as they are in this database."""
    return current_functions().replace("@vector@", vector_schema(connection))


def _models(connection: Connection) -> Iterator[Finding]:
    for model in list_models(connection):
        check, column = f"model {model.name}", f"{model.storage}({model.dim})"
        row = connection.execute(COLUMN_TYPE, [f"imgsearch.{model.table_name}"]).fetchone()
        if row is None:
            yield Finding(check, "bad", f"its table {model.table_name} is missing",
                          f"select imgsearch.create_embeddings({model.model_id}), then: pgimgsearch models fill "
                          f"{model.name}")  # fmt: skip
            continue
        if row[0] != column:
            yield Finding(check, "bad", f"its table {model.table_name} holds {row[0]}, not {column}",
                          f"pgimgsearch models remove {model.name}, and add it again")  # fmt: skip
        parts = connection.cursor(row_factory=dict_row).execute(MODEL_PARTS, [model.model_id]).fetchone() or {}
        if lost := [part for part, exists in parts.items() if not exists]:
            yield Finding(check, "bad", f"{model.table_name} lost its {', '.join(lost)}",
                          f"select imgsearch.create_embeddings({model.model_id})")  # fmt: skip
        if model.fingerprint is None:
            yield Finding(check, "warn", "declared and never loaded", f"pgimgsearch models fill {model.name}")
    for (table,) in connection.execute(ORPHANS).fetchall():
        yield Finding("schema", "warn", f"table of no model: {table}", f"drop table imgsearch.{table}")


def _indexes(connection: Connection) -> Iterator[Finding]:
    for model, table, role in connection.execute(OTHER_TABLES).fetchall():
        if role == "retired":  # of a shadow, the advice of the index tells
            yield Finding(f"index {model}", "warn", f"{table} is left from a swap", f"drop table imgsearch.{table}")
    for name, alone in connection.execute(LEFTOVERS).fetchall():
        yield Finding("schema", "warn", f"{name} is left from a build that was killed, unless one is running",
                      f"drop index {'concurrently ' if alone else ''}imgsearch.{name}")  # fmt: skip


def _catalog(connection: Connection) -> Iterator[Finding]:
    """Models by a name of the catalog that this release would load from elsewhere: their vectors stay comparable."""
    for model in list_models(connection):
        base, _, output = model.name.partition("@")
        spec = lookup.find(base)
        if spec is None or model.weights is not None or output:
            continue
        for what in ("checkpoint", "output"):
            ours, stored = getattr(spec, what), getattr(model, what)
            if ours not in {stored, "auto"}:
                yield Finding(
                    f"model {model.name}", "warn", f"its {what} is {stored}, and {ours} in this release",
                    f"nothing has to be done; to use it: pgimgsearch models add {base} --as {base}-2",
                )  # fmt: skip


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    from pgimgsearch.database.connection import connect
    from pgimgsearch.database.url import database_url
    from pgimgsearch.settings import Settings

    with TemporaryDirectory() as fresh, database_url(Settings(home=Path(fresh))) as url, connect(url) as opened:
        print("\n".join(list_tables(opened)))
