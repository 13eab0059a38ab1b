"""Fresh equals upgraded equals downgraded-and-upgraded; grants and data survive; what cannot be done changes nothing."""

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from benchmarks.harness import add_images, add_model, add_vectors, clustered
from pgimgsearch.database import functions as bundles
from pgimgsearch.database import migrate
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.functions import (
    bundle_path,
    current_functions,
    freeze,
    head_revision,
    known_revisions,
    signatures,
    tables_path,
)
from pgimgsearch.database.models import get_model, remove_model
from pgimgsearch.errors import DatabaseError, SchemaError, UsageError
from pgimgsearch.indexing.build import BuildOptions, build_index
from pgimgsearch.indexing.shadow_table import create_shadow
from pgimgsearch.operations.doctor import list_tables, schema_findings
from pgimgsearch.settings import package_folder

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
    assert {row[1] for row in catalog(empty_url) if row[0] == "column"} <= {
        "alembic_version",
        "alembic_version_pkc",
    }
    assert not [row for row in catalog(empty_url) if row[0] == "function"]
    migrate.upgrade(empty_url)
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
    add_model(connection, "some", 8)
    migrate.downgrade(url, "base")
    assert run(url, "select to_regclass('imgsearch.embedding_some_8')") == [(None,)]


def test_the_newest_bundle_is_what_sql_says() -> None:
    frozen = bundle_path(head_revision()).read_text()
    assert frozen == current_functions(), "sql/ changed: run make bundle, or add a revision once this one is released"


def test_every_function_is_seen_by_the_parser(connection: Connection) -> None:
    """The drop list comes from headers, so the parser must see each function with its true types."""
    found = {(name, types.replace("@vector@.", "")) for name, types in signatures(current_functions()).values()}
    rows = connection.execute(
        "select 'imgsearch.' || proname, pg_get_function_identity_arguments(oid) from pg_proc where pronamespace = 'imgsearch'::regnamespace"
    ).fetchall()
    assert len(found) == len(rows)
    for name, types in found:
        assert connection.execute("select to_regprocedure(%s)", [f"{name}({types})"]).fetchone() != (None,)


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A later release: a revision that adds a column, a function whose default is gone, one that is new, one that left."""
    for name in ("migrations", "sql"):
        shutil.copytree(package_folder(name), tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "migrations" / "versions" / "0007_next.py").write_text(
        "from alembic import op\nrevision = '0007'\ndown_revision = '0006'\n"
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
    labels = tmp_path / "sql" / "60_operations.sql"
    labels.write_text(re.sub(r"-- Give a role.*", "", labels.read_text(), flags=re.DOTALL))
    monkeypatch.setattr(bundles, "package_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(migrate, "package_folder", lambda name: tmp_path / name)
    freeze()
    yield tmp_path
    monkeypatch.undo()


def test_a_later_release_upgrades_and_downgrades(
    url: str, empty_url: str, admin: Connection, next_release: Path
) -> None:
    old = catalog(url)
    admin.execute("drop role if exists app")
    admin.execute("create role app")
    run(url, "grant execute on function imgsearch.text_key(text, text) to app")
    assert migrate.upgrade(url) == ("0006", "0007")
    granted = run(url, "select proacl::text from pg_proc where proname = 'text_key'")[0][0]
    assert "app=X/pgimgsearch" in str(granted)
    run(url, "revoke execute on function imgsearch.text_key(text, text) from app")
    migrate.upgrade(empty_url)
    without_grants = [[row[:3] for row in catalog(which)] for which in (url, empty_url)]
    assert without_grants[0] == without_grants[1]
    assert run(url, "select imgsearch.starred()") == [(0,)]
    assert run(url, "select count(*) from pg_proc where proname = 'grant_access'") == [(0,)]
    assert migrate.downgrade(url, "0006") == ("0007", "0006")
    assert [row[:3] for row in catalog(url)] == [row[:3] for row in old]
    admin.execute("drop role app")


def test_a_database_of_the_first_revision_goes_up_and_down_with_its_grants(empty_url: str, admin: Connection) -> None:
    migrate.upgrade(empty_url, "0001")
    admin.execute("drop role if exists reads, writes")
    admin.execute("create role reads")
    admin.execute("create role writes")
    run(empty_url, "select imgsearch.grant_access('reads', 'reader'), imgsearch.grant_access('writes', 'writer')")
    run(empty_url, "insert into imgsearch.collection (name) values ('kept')")
    before = catalog(empty_url)
    assert migrate.upgrade(empty_url) == ("0001", "0006")
    rights = (
        "select has_table_privilege('reads', t, 'select'), has_table_privilege('reads', t, 'insert'), "
        "has_table_privilege('writes', t, 'select') and has_table_privilege('writes', t, 'insert') "
        "and has_table_privilege('writes', t, 'update') and has_table_privilege('writes', t, 'delete') "
        "from unnest(array['imgsearch.duplicate_pair', 'imgsearch.duplicate_verdict', 'imgsearch.evaluation_run']) t"
    )
    assert run(empty_url, rights) == [(True, False, True)] * 3
    assert run(empty_url, "select name from imgsearch.collection") == [("kept",)]
    assert migrate.downgrade(empty_url, "0001") == ("0006", "0001")
    assert catalog(empty_url) == before
    migrate.downgrade(empty_url, "base")


# What a database of each release holds, written with what that release had.
FIRST = """
insert into imgsearch.collection (name, root) values ('shop', '/photos');
insert into imgsearch.content (sha256, pixel_hash, bytes, width, height, format)
    select sha256(n::text::bytea), sha256(n::text::bytea), n, n, n, 'PNG' from generate_series(1, 30) n;
insert into imgsearch.image (content_id, collection_id, path, caption, metadata)
    select n, 1, n || '.png', 'number ' || n, jsonb_build_object('n', n) from generate_series(1, 30) n;
insert into imgsearch.model (name, slug, dim, backend, checkpoint, output, preprocess, fingerprint, has_text, near)
    values ('old', 'old', 3, 'timm', 'resnet50', 'auto', '{"size": [8, 8]}', 'f', true, 0.95);
select imgsearch.create_embeddings(1);
insert into imgsearch.embedding_old_3 select n, ('[1,' || n || ',0]')::vector from generate_series(1, 30) n;
insert into imgsearch.canary values (1, array[[1, 0, 0]], '{"device": "cpu"}');
select imgsearch.set_alias('default', 'old'), imgsearch.set_alias('text', 'old'),
       imgsearch.cache_text('red', '[0,1,0]', 'old');
insert into imgsearch.ingest_run (collection_id, source, models, status) values (1, 'x', '{old}', 'complete');
insert into imgsearch.ingest_failure (collection_id, path, model_id, kind, error_class, message)
    values (1, 'flat.png', 1, 'skipped', 'SkippedImage', 'flat'), (1, 'broken.png', null, 'failed', 'OSError', 'broken');
"""
SECOND = """
insert into imgsearch.duplicate_scan (model_id, threshold) values (1, 0.9);
insert into imgsearch.duplicate_pair (content_a, content_b, model_id, similarity) values (1, 2, 1, 0.97);
insert into imgsearch.duplicate_verdict (pixels_a, pixels_b, verdict) select min(pixel_hash), max(pixel_hash), 'rejected'
    from imgsearch.content;
insert into imgsearch.cluster values (1, 1, 7, 0.5);
"""
THIRD = """
insert into imgsearch.evaluation_run (protocol, data, model, questions, figures) values ('classes', 'all', 'old', 3, '{}');
"""
FOURTH = """
select imgsearch.add_model('declared', 4, 'timm', 'resnet18', 'auto');
select imgsearch.set_index('old', m => 24, ef_construction => 96);
"""
WRITTEN = {"0001": FIRST, "0002": FIRST + SECOND, "0003": FIRST + SECOND + THIRD,
           "0004": FIRST + SECOND + THIRD + FOURTH, "0005": FIRST + SECOND + THIRD + FOURTH,
           "0006": FIRST + SECOND + THIRD + FOURTH}  # fmt: skip


def rows(url: str, columns: dict[str, str]) -> dict[str, object]:
    """Every row of every table, in the columns named."""
    return {table: run(url, f"select {names} from imgsearch.{table} order by 1, 2") for table, names in columns.items()}


@pytest.mark.parametrize("revision", known_revisions())
def test_data_of_every_release_go_up_and_down(empty_url: str, admin: Connection, revision: str) -> None:
    """With the grants, views and foreign keys that an application has made."""
    migrate.upgrade(empty_url, revision)
    run(empty_url, WRITTEN[revision])
    admin.execute("drop role if exists shop")
    admin.execute("create role shop")
    run(empty_url, "grant execute on function imgsearch.set_alias(text, text) to shop; "
        "create view public.mine as select image_id, embedding from imgsearch.images_old; "
        "create table public.product (image_id bigint references imgsearch.image); insert into product values (3)")  # fmt: skip
    list_tables = "select table_name, string_agg(quote_ident(column_name), ', ' order by column_name) from " \
        "information_schema.columns where table_schema = 'imgsearch' and table_name <> 'alembic_version' group by 1"  # fmt: skip
    columns = {str(table): str(names) for table, names in run(empty_url, list_tables)}
    questions = (
        "select image_id, similarity from imgsearch.similar(5, k => 7)",
        "select image_id from imgsearch.search_text('red', k => 7)", "select count(*) from public.mine",
        "select embedded, skipped, missing from imgsearch.coverage(exact => true)",
    )  # fmt: skip
    data, answers, before = rows(empty_url, columns), [run(empty_url, one) for one in questions[:3]], catalog(empty_url)

    migrate.upgrade(empty_url)
    assert rows(empty_url, columns) == data
    assert [run(empty_url, one) for one in questions[:3]] == answers
    assert run(empty_url, questions[3])[-1] == (30, 0, 0)  # of old, the last by name
    rights = "select has_function_privilege('shop', 'imgsearch.set_alias(text, text)', 'execute')"
    assert run(empty_url, rights) == [(True,)]
    with connect(empty_url) as connection:
        assert get_model(connection, "default").index_spec["method"] == "hnsw"
        found = {difference.what for difference in schema_findings(connection)}
        assert all("checkpoint" in what or "index" in what or "declared" in what for what in found), found

    migrate.downgrade(empty_url, revision)
    assert rows(empty_url, columns) == data
    assert [run(empty_url, one) for one in questions[:3]] == answers
    assert catalog(empty_url) == before
    admin.execute("drop owned by shop")
    run(empty_url, "revoke all on all functions in schema imgsearch from shop")
    admin.execute("drop role shop")


def test_a_release_that_knows_neither_bits_nor_partitions(url: str, connection: Connection) -> None:
    """Their indexes go, the vectors stay; back again, the partitions are known as such."""
    add_images(connection, 2200)
    for name in ("bits", "parts"):
        model = add_model(connection, name, 256)
        if name == "parts":
            connection.execute("select imgsearch.partition_embeddings('parts', 3)")
        add_vectors(connection, model.table_name, clustered(2200, 256))
    for name in ("bits", "parts"):
        connection.execute("select imgsearch.set_index(%s, 'hnsw-binary')", [name])
        build_index(connection, get_model(connection, name), BuildOptions(64))
    wanted = "select image_id from imgsearch.similar(7, model => 'parts', exact => true)"
    before = run(url, wanted)
    migrate.downgrade(url, "0004")
    assert run(url, "select name, index_method, index_spec ->> 'method' from imgsearch.model order by 1") == [
        ("bits", "none", "hnsw"), ("parts", "none", "hnsw")
    ]  # fmt: skip
    assert run(url, "select relname from pg_class where relkind in ('i', 'I') and relname ~ '_bits$'") == []
    assert run(url, "select proname from pg_proc where proname ~ '^_bits_'") == []
    assert run(url, wanted) == before
    migrate.upgrade(url)
    assert run(url, "select name, partitions from imgsearch.model order by 1") == [("bits", 1), ("parts", 3)]
    assert run(url, wanted) == before


def test_a_release_that_knows_no_tables_beside_others(url: str, connection: Connection) -> None:
    """What lay beside goes into the table, and is found there."""
    add_images(connection, 300)
    model = add_model(connection, "test", 16)
    add_vectors(connection, model.table_name, clustered(300, 16)[:200])
    create_shadow(connection, model, 2)
    add_vectors(connection, "embeddings_1_aside", clustered(300, 16)[190:], first=190)
    migrate.downgrade(url, "0005")
    assert run(url, "select count(*) from imgsearch.embedding_test_16") == [(300,)]
    assert run(url, "select relname from pg_class where relname ~ '^embeddings_'") == []


def test_a_declared_model_survives_a_release_that_knows_none(url: str) -> None:
    run(url, FOURTH.partition(";")[0])
    migrate.downgrade(url, "0003")
    assert run(url, "select fingerprint from imgsearch.model") == [("",)]
    migrate.upgrade(url)
    assert run(url, "select fingerprint from imgsearch.model") == [(None,)]


def test_a_failed_upgrade_changes_nothing(url: str, next_release: Path) -> None:
    revision = next_release / "migrations" / "versions" / "0007_next.py"
    revision.write_text(revision.read_text().replace("add starred boolean')", "add starred boolean; select 1 / 0')"))
    before = catalog(url)
    with pytest.raises(DatabaseError, match="division by zero") as raised:
        migrate.upgrade(url)
    assert "nothing was changed" in str(raised.value.hint)
    assert catalog(url) == before
    assert run(url, "select version_num from imgsearch.alembic_version") == [("0006",)]


def differences(url: str) -> list[tuple[str, str]]:
    with connect(url) as connection:
        return [(found.where, found.what) for found in schema_findings(connection)]


def test_check_says_what_is_not_as_this_release_has_it(url: str, connection: Connection) -> None:
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
        "policy read of duplicate_pair", "row security of duplicate_pair", "_slug is not that of this release",
        "imgsearch.coverage(boolean) is not there", "imgsearch.recall(bigint) is no part of this release",
    ):  # fmt: skip
        assert any(where == "schema" and what in said for where, said in told), (what, told)
    connection.execute("alter table imgsearch.image add group_key text")
    migrate.upgrade(url, functions=True)
    assert [said for _, said in differences(url) if "the function" in said] == [
        "the function imgsearch.recall(bigint) is no part of this release"
    ]


def test_check_says_what_became_of_models(url: str, connection: Connection) -> None:
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
        ("model", "holds halfvec(9), and one has halfvec(8)"), ("model", "dinov2-base has no table embedding_other_8"),
        ("model", "embedding_stray_4 belongs to no model"), ("index", "the index of one is not there"),
        ("model", "embedding_third_8 has lost its view, security, policies, foreign key"),
        ("catalog", "the checkpoint of dinov2-base is"),
    ):  # fmt: skip
        assert any(where == found and what in said for found, said in told), (what, told)
    connection.execute("select imgsearch.create_embeddings(model_id) from imgsearch.model where name = 'third'")
    assert not any("third has lost" in said for _, said in differences(url))
    with connect(url) as opened:
        for name in ("dinov2-base", "one"):  # also where the table is gone
            remove_model(opened, name)
    assert {where for where, _ in differences(url)} == {"model", "index"}


def test_the_tables_are_listed(url: str) -> None:
    with connect(url) as connection:
        assert list_tables(connection) == tables_path().read_text().splitlines(), "run: make bundle"


def test_what_users_built_stops_the_run_and_nothing_changes(url: str, next_release: Path) -> None:
    run(url, "create view public.mine as select imgsearch.text_key('x')")
    before = catalog(url)
    with pytest.raises(DatabaseError, match="mine") as raised:
        migrate.upgrade(url)
    assert "nothing was changed" in str(raised.value.hint)
    assert catalog(url) == before


def test_a_newer_database_is_refused(url: str) -> None:
    run(url, "update imgsearch.alembic_version set version_num = '9999'")
    for attempt in (lambda: connect(url).__enter__(), lambda: migrate.upgrade(url)):
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
                    "insert into imgsearch.content (sha256, pixel_hash, bytes, width, height, format) values (sha256(%s::text::bytea), sha256('x'), 1, 1, 1, 'P')",
                    [number],
                )
                connection.execute(
                    "insert into imgsearch.image (content_id, collection_id, path) values (%s, 1, %s)",
                    [number, str(number)],
                )
                connection.execute(
                    f'insert into imgsearch.{model.table_name} values (%s, %s::"Ext Schema".vector)',
                    [number, f"[1,{number},0]"],
                )  # type: ignore[call-overload]
            assert connection.execute("select image_id from imgsearch.similar(1)").fetchall() == [(2,), (3,)]
            assert connection.execute("select count(*) from imgsearch.duplicates()").fetchone() == (2,)
    finally:
        admin.execute("drop database elsewhere with (force)")
