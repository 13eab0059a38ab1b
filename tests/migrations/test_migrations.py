"""Fresh equals upgraded equals downgraded-and-upgraded; grants and data survive; what cannot be done changes nothing."""

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgimgsearch.database import functions, migrate
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.functions import (
    current_functions,
    freeze,
    head_revision,
    normalized,
    signatures,
    tables_path,
)
from pgimgsearch.database.models import remove_model
from pgimgsearch.database.url import prepare_embedded
from pgimgsearch.errors import DatabaseError, SchemaError, UsageError
from pgimgsearch.operations.doctor import server_findings
from pgimgsearch.operations.schema_check import list_tables, schema_findings
from pgimgsearch.settings import package_folder
from tests.support.builders import add_model

# Everything of the catalogs that makes our schema what it is, in a form that two databases share.
CATALOG = """
select 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text || a.attidentity::text || a.attgenerated::text
       || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relnamespace = 'imgsearch'::regnamespace
union all select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '' from pg_constraint
where connamespace = 'imgsearch'::regnamespace
union all select 'index', tablename, indexname, indexdef, '' from pg_indexes where schemaname = 'imgsearch'
union all select 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid), coalesce(p.proacl::text, ''), '' from pg_proc p
where pronamespace = 'imgsearch'::regnamespace
union all select 'type', typname, typtype::text, '', '' from pg_type where typnamespace = 'imgsearch'::regnamespace
union all select 'comment', d.objoid::regclass::text, d.description, '', '' from pg_description d
join pg_class c on c.oid = d.objoid and d.classoid = 'pg_class'::regclass where c.relnamespace = 'imgsearch'::regnamespace
order by 1, 2, 3, 4
"""


def catalog(url: str) -> list[tuple[str, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(CATALOG).fetchall()


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


def test_fresh_equals_downgraded_and_upgraded(empty_url: str) -> None:
    assert migrate.upgrade(empty_url) == (None, head_revision())
    fresh = catalog(empty_url)
    assert len(fresh) > 100
    assert migrate.downgrade(empty_url, "base") == (head_revision(), "base")
    assert not [row for row in catalog(empty_url) if row[0] in {"column", "function"}]
    migrate.upgrade(empty_url)
    assert catalog(empty_url) == fresh
    migrate.downgrade(empty_url, "base")
    with connect(empty_url, check=False) as connection:
        connection.execute(migrate.script(connection))
    assert catalog(empty_url) == fresh


def test_upgrading_twice_changes_nothing(url: str) -> None:
    before = catalog(url)
    assert migrate.upgrade(url) == (head_revision(), head_revision())
    assert catalog(url) == before


def test_the_printed_sql_does_what_upgrade_does(empty_url: str, url: str) -> None:
    with connect(empty_url, check=False) as connection:
        script = migrate.script(connection)
        assert "BEGIN" in script
        assert "COMMIT" in script
        connection.execute(script)  # type: ignore[call-overload]
        assert migrate.script(connection) == ""
    assert catalog(empty_url) == catalog(url)


def test_downgrade_to_base_takes_the_models_along(url: str, connection: Connection) -> None:
    model = add_model(connection, "some", 8)
    connection.execute(  # as an index over bits leaves it
        "update imgsearch.model m set index_method = 'hnsw-binary', index_state = jsonb_build_object("
        "'bits', imgsearch._create_bits_function(m, %s, 0))", [model.table_name],
    )  # fmt: skip
    migrate.downgrade(url, "base")
    assert run(url, "select to_regclass('imgsearch.embedding_some_8')") == [(None,)]
    assert run(url, "select count(*) from pg_proc where proname ~ '^_bits_'") == [(0,)]


def test_signatures_from_files_are_those_of_the_server(connection: Connection) -> None:
    """What an upgrade drops is found by comparing both, so they must agree for every function."""
    rows = connection.execute(
        "select 'imgsearch.' || proname, pg_get_function_identity_arguments(oid), pronargdefaults, "
        "pg_get_function_result(oid) from pg_proc where pronamespace = 'imgsearch'::regnamespace"
    ).fetchall()
    server = sorted((name, normalized(arguments, defaults, result)) for name, arguments, defaults, result in rows)
    files = sorted((name, signature) for (name, _), signature in signatures(current_functions()).items())
    assert files == server


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A later release: a new column, a function whose default is gone, a new function, and one that was dropped."""
    for name in ("migrations", "sql"):
        shutil.copytree(package_folder(name), tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(functions, "package_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(migrate, "package_folder", lambda name: tmp_path / name)
    freeze()
    (tmp_path / "migrations" / "versions" / "0002_next.py").write_text(
        "from alembic import op\nrevision = '0002'\ndown_revision = '0001'\n"
        "def upgrade(): op.get_context().config.attributes['run_sql']('alter table imgsearch.image add starred boolean')\n"
        "def downgrade(): op.get_context().config.attributes['run_sql']('alter table imgsearch.image drop starred')\n"
    )
    text = tmp_path / "sql" / "30_text.sql"
    changed = text.read_text().replace("query text, template text default '{}'", "query text, template text")
    changed = changed.replace("imgsearch.text_key(text_vector.query)", "imgsearch.text_key(text_vector.query, '{}')")
    text.write_text(
        changed
        + "\ncreate or replace function imgsearch.starred() returns bigint\nlanguage sql stable\nreturn (select count(*) from imgsearch.image where starred);\n"
    )
    operations = tmp_path / "sql" / "60_operations.sql"
    operations.write_text(without_function(operations.read_text(), "grant_access"))
    yield tmp_path
    monkeypatch.undo()


def without_function(text: str, name: str) -> str:
    kept = re.sub(rf"create or replace function imgsearch\.{name}\(.*?\nend \$\$;\n", "", text, flags=re.DOTALL)
    assert kept != text
    return kept


def test_a_later_release_upgrades_and_downgrades(
    url: str, empty_url: str, admin: Connection, next_release: Path
) -> None:
    old = catalog(url)
    admin.execute("drop role if exists app")
    admin.execute("create role app")
    run(url, "grant execute on function imgsearch.text_key(text, text) to app")
    assert migrate.upgrade(url) == ("0001", "0002")
    granted = run(url, "select proacl::text from pg_proc where proname = 'text_key'")[0][0]
    assert "app=X/pgimgsearch" in str(granted)
    run(url, "revoke execute on function imgsearch.text_key(text, text) from app")
    migrate.upgrade(empty_url)
    without_grants = [[row[:3] for row in catalog(which)] for which in (url, empty_url)]
    assert without_grants[0] == without_grants[1]
    assert run(url, "select imgsearch.starred()") == [(0,)]
    assert run(url, "select count(*) from pg_proc where proname = 'grant_access'") == [(0,)]
    assert migrate.downgrade(url, "0001") == ("0002", "0001")
    assert [row[:3] for row in catalog(url)] == [row[:3] for row in old]
    admin.execute("drop role app")


DATA = """
insert into imgsearch.collection (name, root) values ('shop', '/photos');
insert into imgsearch.content (sha256, pixel_hash, bytes, width, height, format)
    select sha256(n::text::bytea), decode(md5(n::text), 'hex'), n, n, n, 'PNG' from generate_series(1, 30) n;
insert into imgsearch.image (content_id, collection_id, key, path, caption, metadata)
    select n, 1, n || '.png', n || '.png', 'number ' || n, jsonb_build_object('n', n) from generate_series(1, 30) n;
select imgsearch.add_model('old', 3, 'timm', 'resnet50', 'auto');
insert into imgsearch.embedding_old_3 select n, ('[1,' || n || ',0]')::vector from generate_series(1, 30) n;
select imgsearch.set_alias('default', 'old');
insert into imgsearch.duplicate_scan (model_id, threshold) values (1, 0.95);
insert into imgsearch.duplicate_pair (content_a, content_b, model_id, similarity) values (1, 2, 1, 0.97);
insert into imgsearch.ingest_failure (collection_id, key, path, model_id, kind, error_class, message)
    values (1, 'flat.png', 'flat.png', 1, 'skipped', 'SkippedImage', 'flat');
create view public.mine as select image_id, embedding from imgsearch.images_old;
create table public.product (image_id bigint references imgsearch.image);
insert into product values (3);
"""
QUESTIONS = (
    "select image_id, similarity from imgsearch.similar(5, k => 7)",
    "select count(*) from public.mine",
    "select embedded, skipped, missing from imgsearch.coverage(exact => true)",
)


def test_data_survive_an_upgrade_and_a_downgrade(url: str, admin: Connection, next_release: Path) -> None:
    """With the grants, views and foreign keys that an application has made."""
    admin.execute("drop role if exists shop")
    admin.execute("create role shop")
    run(url, DATA)
    run(url, "grant execute on function imgsearch.set_alias(text, text) to shop")
    columns = dict(run(url, "select table_name, string_agg(quote_ident(column_name), ', ' order by column_name) from "
        "information_schema.columns where table_schema = 'imgsearch' and table_name <> 'alembic_version' group by 1"))  # fmt: skip

    def state() -> tuple[object, ...]:
        tables = [run(url, f"select {names} from imgsearch.{table} order by 1, 2") for table, names in columns.items()]
        return tables, [run(url, question) for question in QUESTIONS]

    before = state()
    for step in (migrate.upgrade, lambda url: migrate.downgrade(url, "0001")):
        step(url)
        assert state() == before
        rights = "select has_function_privilege('shop', 'imgsearch.set_alias(text, text)', 'execute')"
        assert run(url, rights) == [(True,)]
    run(url, "drop view public.mine; drop table public.product")
    run(url, "revoke all on function imgsearch.set_alias(text, text) from shop")
    admin.execute("drop role shop")


def test_an_older_schema_is_refused_with_a_way_out(url: str) -> None:
    """One of before the first release has no stamp, or another."""
    for stamp in ("null", "'schema 0123456789abcdef'"):
        run(url, f"comment on table imgsearch.alembic_version is {stamp}")
        for attempt in (lambda: connect(url).__enter__(), lambda: migrate.upgrade(url), lambda: prepare_embedded(url)):
            with pytest.raises(SchemaError, match="before the first release") as raised:
                attempt()
            assert "pgimgsearch export" in str(raised.value.hint)


def test_a_failed_upgrade_changes_nothing(url: str, next_release: Path) -> None:
    revision = next_release / "migrations" / "versions" / "0002_next.py"
    revision.write_text(revision.read_text().replace("add starred boolean')", "add starred boolean; select 1 / 0')"))
    before = catalog(url)
    with pytest.raises(DatabaseError, match="division by zero") as raised:
        migrate.upgrade(url)
    assert "nothing was changed" in str(raised.value.hint)
    assert catalog(url) == before
    assert run(url, "select version_num from imgsearch.alembic_version") == [("0001",)]


def differences(url: str) -> list[tuple[str, str]]:
    with connect(url) as connection:
        return [(found.check, found.finding) for found in schema_findings(connection)]


def test_doctor_finds_what_is_not_as_this_release_has_it(url: str, connection: Connection) -> None:
    for broken in (
        "alter table imgsearch.image drop group_key cascade",
        "drop index imgsearch.image_metadata", "alter table imgsearch.text_embedding drop constraint text_embedding_pkey",
        "drop policy read on imgsearch.duplicate_pair", "alter table imgsearch.duplicate_pair disable row level security",
        "create or replace function imgsearch._slug(name text) returns text language sql as 'select $1'",
        "drop function imgsearch.coverage", "create function imgsearch.recall(bigint) returns int language sql as 'select 1'",
    ):  # fmt: skip
        connection.execute(broken)  # type: ignore[call-overload]
    told = differences(url)
    for what in (
        "column image.group_key text", "image_metadata", "PRIMARY KEY (model_id, key)",
        "policy read of duplicate_pair", "row security of duplicate_pair", "changed function: imgsearch._slug",
        "missing function: imgsearch.coverage(boolean)", "your own: imgsearch.recall(bigint)",
    ):  # fmt: skip
        assert any(where == "schema" and what in said for where, said in told), (what, told)
    connection.execute("alter table imgsearch.image add group_key text")
    migrate.upgrade(url, functions=True)
    assert [said for _, said in differences(url) if "function" in said] == [
        "function of an earlier release or your own: imgsearch.recall(bigint)"
    ]


@pytest.mark.parametrize(
    ("version", "states"),
    [
        ("0.8.1", {"parallel builds": "warn", "pgvector": "warn"}), ("0.8.4", {"pgvector": "warn"}),
        ("0.8.6", {"pgvector": "good"}), ("0.8.7", {"pgvector": "good"}), ("0.7.4", {"schema": "bad"}),
    ],
)  # fmt: skip
def test_doctor_knows_what_a_version_of_pgvector_lacks(
    url: str, connection: Connection, version: str, states: dict[str, str]
) -> None:
    with psycopg.connect(url, user="postgres", autocommit=True) as superuser:
        superuser.execute("update pg_extension set extversion = %s where extname = 'vector'", [version])
    found = [one for one in server_findings(connection) if one.check in {"parallel builds", "pgvector", "schema"}]
    assert {one.check: one.state for one in found if one.check in states} == states
    assert all(one.mend for one in found if one.state != "good")
    notes = [one.finding for one in found if one.check == "pgvector" and one.state == "good"]
    assert [("0.8.7 fixes" in note) for note in notes] == [version == "0.8.6"] * len(notes)


def test_doctor_finds_what_became_of_models(url: str, connection: Connection) -> None:
    add_model(connection, "one", 8)
    add_model(connection, "other", 8)
    add_model(connection, "third", 8)
    connection.execute("delete from imgsearch.alias")
    for own in (
        "alter table imgsearch.image add mine text", "create index mine on imgsearch.image ((metadata ->> 'shop'))",
        "alter table imgsearch.image enable row level security", "create policy mine on imgsearch.image using (true)",
    ):  # fmt: skip
        connection.execute(own)  # type: ignore[call-overload]
    assert differences(url) == []
    assert differences(url + "&options=-csearch_path%3Dimgsearch,public") == []
    for broken in (
        "alter table imgsearch.embedding_third_8 disable row level security", "drop view imgsearch.images_third",
        "drop policy add on imgsearch.embedding_third_8", "alter table imgsearch.embedding_third_8 drop constraint "
        "embedding_third_8_content_id_fkey", "drop view imgsearch.images_one",
        "alter table imgsearch.embedding_one_8 alter embedding type halfvec(9)",
        "drop table imgsearch.embedding_other_8 cascade", "create table imgsearch.embedding_stray_4 (content_id bigint)",
        "update imgsearch.model set index_method = 'hnsw'",
        "update imgsearch.model set name = 'dinov2-base' where name = 'other'",
    ):  # fmt: skip
        connection.execute(broken)  # type: ignore[call-overload]
    told = differences(url)
    for where, what in (
        ("model one", "embedding_one_8 holds halfvec(9), not halfvec(8)"),
        ("model dinov2-base", "its table embedding_other_8 is missing"),
        ("schema", "table of no model: embedding_stray_4"),
        ("model third", "embedding_third_8 lost its view, security, policies, foreign key"),
        ("model dinov2-base", "its checkpoint is"),
    ):  # fmt: skip
        assert any(where == found and what in said for found, said in told), (what, told)
    connection.execute("select imgsearch.create_embeddings(model_id) from imgsearch.model where name = 'third'")
    assert not any("third_8 lost" in said for _, said in differences(url))
    with connect(url) as opened:
        for name in ("dinov2-base", "one"):  # also where the table is gone
            remove_model(opened, name)
    assert {said for _, said in differences(url)} == {"table of no model: embedding_stray_4"}


def test_the_tables_are_listed(url: str) -> None:
    with connect(url) as connection:
        assert list_tables(connection) == tables_path().read_text().splitlines(), "run: make tables"


def test_what_users_built_stops_the_run_and_nothing_changes(url: str, next_release: Path) -> None:
    run(url, "create view public.mine as select imgsearch.text_key('x')")
    before = catalog(url)
    with pytest.raises(DatabaseError, match="mine") as raised:
        migrate.upgrade(url)
    assert "nothing was changed" in str(raised.value.hint)
    assert catalog(url) == before


def test_a_newer_database_is_refused(url: str) -> None:
    run(url, "update imgsearch.alembic_version set version_num = '9999'")
    for attempt in (lambda: connect(url).__enter__(), lambda: migrate.upgrade(url), lambda: prepare_embedded(url)):
        with pytest.raises(SchemaError, match="does not know") as raised:
            attempt()
        assert "pip install --upgrade" in str(raised.value.hint)


def test_an_unprepared_database_is_refused(empty_url: str) -> None:
    with pytest.raises(SchemaError, match="not prepared") as raised, connect(empty_url):
        pass
    assert "pgimgsearch db upgrade" in str(raised.value.hint)


def test_unknown_revisions_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="unknown revision: 0777"):
        migrate.upgrade(url, "0777")


def test_two_upgrades_at_once(empty_url: str) -> None:
    errors: list[BaseException] = []

    def upgrade() -> None:
        try:
            migrate.upgrade(empty_url)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with connect(empty_url) as connection:
        assert connection.execute("select count(*) from imgsearch.model").fetchone() == (0,)


def test_the_extension_may_live_elsewhere(admin: Connection, server: str) -> None:
    admin.execute("create database elsewhere owner pgimgsearch")
    with psycopg.connect(host=server, user="postgres", dbname="elsewhere", autocommit=True) as superuser:
        superuser.execute('create schema "Ext Schema"')
        superuser.execute('create extension vector schema "Ext Schema"')
        superuser.execute('grant usage on schema "Ext Schema" to public')
    url = f"postgresql://pgimgsearch@/elsewhere?host={server}"
    try:
        migrate.upgrade(url)
        with connect(url) as connection:
            model = add_model(connection, "some", 3)
            connection.execute("insert into imgsearch.collection (name) values ('c')")
            for number in range(1, 4):
                connection.execute(
                    "insert into imgsearch.content (sha256, pixel_hash, bytes, width, height, format) values (sha256(%s::text::bytea), decode(md5('x'), 'hex'), 1, 1, 1, 'P')",
                    [number],
                )
                connection.execute(
                    "insert into imgsearch.image (content_id, collection_id, key, path) values (%s, 1, %s, %s)",
                    [number, str(number), str(number)],
                )
                connection.execute(
                    f'insert into imgsearch.{model.table_name} values (%s, %s::"Ext Schema".vector)',
                    [number, f"[1,{number},0]"],
                )  # type: ignore[call-overload]
            assert connection.execute("select image_id from imgsearch.similar(1)").fetchall() == [(2,), (3,)]
            assert connection.execute("select count(*) from imgsearch.duplicates()").fetchone() == (2,)
    finally:
        admin.execute("drop database elsewhere with (force)")
