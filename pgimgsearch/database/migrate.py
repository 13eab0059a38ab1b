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
    check_server,
    connect,
    current_revision,
    pgvector_version,
    too_new,
    translate,
    translated_errors,
    vector_schema,
)
from pgimgsearch.database.functions import functions_of, head_revision, known_revisions, signatures
from pgimgsearch.errors import PgImgSearchError, UsageError
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
    if start == end:
        return ""
    out = io.StringIO()
    schema = vector_schema(connection) if pgvector_version(connection) else "public"
    if pgvector_version(connection) is None:
        out.write("CREATE EXTENSION vector;\n\n")

    def print_sql(text: str) -> None:
        if text.strip():
            out.write(_with_schema(text.strip(), schema).rstrip(";") + ";\n\n")

    config = _config({"start": start, "target": end, "vector": schema, "run_sql": print_sql})
    config.output_buffer = out
    from alembic import command

    command.upgrade(config, f"{start or BASE}:{end}", sql=True)
    return out.getvalue()


def plan_functions(start: str | None, target: str | None, vector: str) -> tuple[str, str]:
    """SQL to run before and after the revisions between two revisions; ``vector`` is the extension's schema.

    Grants on a dropped function are kept in a temporary table and given to its successor of the same name.
    """
    old, new = signatures(functions_of(start)), signatures(functions_of(target))
    gone = [signature for header, signature in old.items() if header not in new]
    names = {name for name, _ in new.values()}
    before = [DROP_MODEL_TABLES] if target is None else []
    before += ["create temporary table kept_grants (name text, grantee text) on commit drop;"] if gone else []
    for name, types in gone:
        before.append(f"insert into kept_grants select '{name}', case a.grantee when 0 then 'public' else "
                      f"quote_ident(pg_get_userbyid(a.grantee)) end from pg_proc p, aclexplode(p.proacl) a "
                      f"where p.oid = to_regprocedure('{name}({types})') and a.grantee <> p.proowner;"
                      if name in names else "")  # fmt: skip
        before.append(f"drop function if exists {name}({types});")
    after = [functions_of(target)]
    if gone:
        after.append(RESTORE_GRANTS)
    return _with_schema("\n".join(before), vector), _with_schema("\n".join(after), vector)


# Made by a function of ours, so no revision names them; their policies hold one of the functions that go.
DROP_MODEL_TABLES = """
do $$
declare m record;
begin
    for m in select model_id, embeddings, images from imgsearch.model loop
        execute format('drop view if exists %s', m.images);
        execute format('drop table if exists %s', m.embeddings);
        execute format('drop table if exists imgsearch.embeddings_%s_aside', m.model_id);
        execute format('drop table if exists imgsearch.embeddings_%s_old', m.model_id);
    end loop;
end $$;
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
            connection.execute("create extension if not exists vector")
        except psycopg.Error:
            check_server(connection)  # says whether it is not installed, or an administrator has to create it
            raise
    check_server(connection)


def _config(attributes: dict[str, Any]) -> Any:
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
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url, application_name="pgimgsearch"),
        poolclass=sqlalchemy.NullPool,
    )  # fmt: skip
    try:
        with translated_errors(), engine.begin() as transaction:
            run_sql = _runner(transaction, vector)
            run_sql("select pg_advisory_xact_lock(hashtext('pgimgsearch.migrate'))")  # two at once: one waits
            start = current_revision(transaction.connection.driver_connection)  # type: ignore[arg-type]
            if start not in {None, *known_revisions()}:
                raise too_new(start)
            if start == (None if target == BASE else target):
                if functions:
                    run_sql(functions_of(target))
                return start, target
            run_sql("create schema if not exists imgsearch")
            config = _config(
                {
                    "start": start,
                    "target": target,
                    "vector": vector,
                    "connection": transaction,
                    "run_sql": run_sql,
                }
            )
            move = command.downgrade if _goes_down(start, target) else command.upgrade
            move(config, target)
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise _explain(error.orig) from error
        raise
    return start, target


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
