"""Upgrade and downgrade: one Alembic run, one transaction, tables by revisions and functions by ``sql/``.

The order inside the transaction: drop the functions that are gone or whose signature changes, run the
revisions, create or replace the functions of the revision reached, give back what was granted on those dropped.
"""

import io
from collections.abc import Callable
from typing import Any

import psycopg

from pgimgsearch.database.connection import (
    Connection,
    check_schema,
    check_server,
    connect,
    current_revision,
    pgvector_version,
    translate,
    translated_errors,
    vector_schema,
)
from pgimgsearch.database.functions import (
    functions_of,
    head_revision,
    known_revisions,
    normalized,
    schema_fingerprint,
    signatures,
)
from pgimgsearch.database.session_settings import apply_settings
from pgimgsearch.errors import PgImgSearchError, SchemaError, UsageError
from pgimgsearch.settings import package_folder

BASE = "base"


def upgrade(url: str, target: str = "head", *, functions: bool = False) -> tuple[str | None, str]:
    """Bring the database to a revision; the extension is created if it is missing. Returns (before, after).

    ``functions`` puts ours back, whatever became of them, also where the revision is reached already.
    """
    return _migrate(url, _known(target), functions=functions)


def downgrade(url: str, target: str) -> tuple[str | None, str]:
    """Take the database back to an older revision, or to ``base``: nothing of ours. Returns (before, after)."""
    return _migrate(url, target if target == BASE else _known(target))


def script(connection: Connection, target: str = "head") -> str:
    """The SQL that ``upgrade`` would run on this database, as text."""
    start, end = current_revision(connection), _known(target)
    check_schema(connection, start)
    if start == end:
        return ""
    out = io.StringIO()
    schema = vector_schema(connection) if pgvector_version(connection) else "public"
    if pgvector_version(connection) is None:
        out.write("CREATE EXTENSION vector;\n\n")

    def print_sql(text: str) -> None:
        if text.strip():
            out.write(_with_schema(text.strip(), schema).rstrip(";") + ";\n\n")

    config = _config(run_sql=print_sql, **plan_functions(connection, start, end, schema))
    config.output_buffer = out
    from alembic import command

    command.upgrade(config, f"{start or BASE}:{end}", sql=True)
    return out.getvalue()


def plan_functions(connection: Connection, start: str | None, target: str | None, vector: str) -> dict[str, str]:
    """The SQL to run ``before`` and ``after`` the revisions between two; ``vector`` is the extension's schema.

    Functions of the start revision are dropped where they are gone or their signature differs; the others are replaced
    in place. Grants on a dropped function go to its successor of the same name.
    """
    wanted = signatures(functions_of(target))
    names = sorted({name.partition(".")[2] for name, _ in signatures(functions_of(start))})
    present = connection.execute(PRESENT, [names]).fetchall()
    kept = {name for name, _ in wanted}
    gone = {
        routine: name for name, routine, _, arguments, defaults, result in present
        if normalized(arguments, defaults, result) not in {
            signature for (other, _), signature in wanted.items() if other == name
        }
    }  # fmt: skip
    while using := {routine: name for name, routine, uses, *_ in present if routine not in gone and gone.keys() & uses}:
        gone |= using  # bodies in SQL are bound to the functions that they call, and are created again with them
    before = [DROP_DEPENDENTS] if target is None else []
    before += ["create temporary table kept_grants (name text, grantee text) on commit drop;"] if gone else []
    before += [KEEP_GRANTS.format(name=name, routine=routine) for routine, name in gone.items() if name in kept]
    before += [f"drop function {', '.join(gone)};"] if gone else []
    if target is None:
        mark = "drop table imgsearch.alembic_version;"
    else:
        mark = f"comment on table imgsearch.alembic_version is 'schema {schema_fingerprint(target)}';"
    after = [functions_of(target), mark, RESTORE_GRANTS if gone else ""]
    return {"before": _with_schema("\n".join(before), vector), "after": _with_schema("\n".join(after), vector)}


PRESENT = """
select 'imgsearch.' || p.proname, p.oid::regprocedure::text,
       array(select d.refobjid::regprocedure::text from pg_depend d
             where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.refclassid = 'pg_proc'::regclass),
       pg_get_function_identity_arguments(p.oid), p.pronargdefaults, pg_get_function_result(p.oid)
from pg_proc p where p.pronamespace = to_regnamespace('imgsearch') and p.proname = any(%s) order by 2
"""
KEEP_GRANTS = """insert into kept_grants
select '{name}', case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
from pg_proc p, aclexplode(p.proacl) a where p.oid = '{routine}'::regprocedure and a.grantee <> p.proowner;"""
# Created by functions, so no revision names them.
DROP_DEPENDENTS = """
do $$ begin perform imgsearch._drop_embeddings(m) from imgsearch.model m; end $$;
drop trigger check_content on imgsearch.image;
drop trigger check_new_content on imgsearch.image;
"""
RESTORE_GRANTS = """
do $$
declare g record;
begin
    for g in select distinct k.grantee, p.oid::regprocedure as routine
             from kept_grants k
             join pg_proc p on p.pronamespace = 'imgsearch'::regnamespace and 'imgsearch.' || p.proname = k.name loop
        execute format('grant execute on function %s to %s', g.routine, g.grantee);
    end loop;
end $$;
"""


def _with_schema(text: str, vector: str) -> str:
    return text.replace("@vector@", vector)


def _known(target: str) -> str:
    revision = head_revision() if target == "head" else target
    if revision not in known_revisions():
        raise UsageError(f"unknown revision: {target}", hint=f"known: base, {', '.join(known_revisions())}, head")
    return revision


def _ensure_extension(connection: Connection) -> None:
    if pgvector_version(connection) is None:
        try:
            connection.execute("create extension if not exists vector schema public")
        except psycopg.Error:
            check_server(connection)  # says whether it is not installed, or an administrator has to create it
            raise
    check_server(connection)


def _config(**attributes: Any) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(package_folder("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes.update(attributes)
    return config


def _migrate(url: str, target: str, *, functions: bool = False) -> tuple[str | None, str]:
    import sqlalchemy
    from alembic import command

    with connect(url, check=False) as connection:
        if target != BASE:
            _ensure_extension(connection)
        vector = vector_schema(connection) if pgvector_version(connection) else "public"
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: _open(url), poolclass=sqlalchemy.NullPool
    )
    try:
        with translated_errors(), engine.begin() as transaction:
            run_sql = _runner(transaction, vector)
            run_sql("select pg_advisory_xact_lock(hashtext('pgimgsearch.migrate'))")  # two at once: one waits
            driver: Any = transaction.connection.driver_connection
            _check_nobody_elses(driver)
            start = current_revision(driver)
            check_schema(driver, start)
            if start == (None if target == BASE else target):
                if functions:
                    run_sql(functions_of(target))
                return start, target
            run_sql("create schema if not exists imgsearch")
            plan = plan_functions(driver, start, None if target == BASE else target, vector)
            config = _config(connection=transaction, run_sql=run_sql, **plan)
            move = command.downgrade if _goes_down(start, target) else command.upgrade
            move(config, target)
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise _explain(error.orig) from error
        raise
    return start, target


def _check_nobody_elses(connection: psycopg.Connection) -> None:
    """Raise SchemaError for a schema of our name that another role made, who could put functions into it."""
    row = connection.execute(
        "select n.nspowner::regrole::text, case when exists (select from pg_class t where t.relnamespace = n.oid "
        "and t.relname = 'image') then pg_has_role(n.nspowner, 'usage') else n.nspowner = current_user::regrole end, "
        "array(select a.grantee::regrole::text from aclexplode(n.nspacl) a where a.privilege_type = 'CREATE' "
        "and a.grantee <> n.nspowner), "
        "exists (select from pg_class t where t.relnamespace = n.oid and t.relname = 'alembic_version') "
        "from pg_namespace n where n.nspname = 'imgsearch'"
    ).fetchone()
    if row is not None and not row[1] and row[3]:
        raise SchemaError(
            f"imgsearch of this database belongs to {row[0]}",
            hint=f"connect as {row[0]}, or as a member, to upgrade it; if nobody you know made it, have it removed: "
            "drop schema imgsearch cascade",
        )
    if row is not None and (not row[1] or row[2]):
        others = ", ".join(row[2]) if row[1] else row[0]
        raise SchemaError(
            f"the schema imgsearch is there already, and {others} may put functions into it, which would run as you",
            hint="remove it: drop schema imgsearch; or take it: alter schema imgsearch owner to ..., revoke create on "
            "schema imgsearch from ...",
        )


def _open(url: str) -> psycopg.Connection:
    connection = psycopg.connect(url, application_name="pgimgsearch")
    apply_settings(connection)
    connection.commit()
    return connection


def _goes_down(start: str | None, target: str) -> bool:
    return target == BASE or (start is not None and known_revisions().index(target) < known_revisions().index(start))


def _runner(transaction: Any, vector: str) -> Callable[[str], None]:
    """A function that runs SQL as it stands: no parameters, so a percent or a colon means itself."""
    plain = transaction.execution_options(no_parameters=True)

    def run_sql(text: str) -> None:
        if text.strip():
            plain.exec_driver_sql(_with_schema(text, vector))

    return run_sql


def _explain(error: psycopg.Error) -> PgImgSearchError:
    mended = translate(error)
    mended.hint = f"nothing was changed; {mended.hint}"
    return mended
