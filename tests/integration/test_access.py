"""Least privilege and row-level security."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import get_model
from pgimgsearch.indexing.build import BuildOptions, build_index
from tests.support.builders import add_images, add_model, add_vectors, clustered
from tests.support.roles import drop_roles


@pytest.fixture
def tenants(connection: Connection, admin: Connection, url: str) -> Iterator[str]:
    """Two tenants' images in one table, a policy on imgsearch.image, and a reader that is tenant 0."""
    add_images(connection, 2000)
    model = add_model(connection, "test", 16)
    add_vectors(connection, model.table_name, clustered(2000, 16))
    build_index(connection, model, BuildOptions(64))
    admin.execute("drop role if exists tenant")
    admin.execute("create role tenant login")
    connection.execute("select imgsearch.grant_access('tenant', 'reader')")
    connection.execute("alter table imgsearch.image enable row level security")
    connection.execute("create policy tenant on imgsearch.image for select to tenant using (image_id % 10 = 0)")
    yield url.replace("pgimgsearch@", "tenant@")
    drop_roles(url, "tenant")


def test_a_tenant_sees_its_own_and_all_of_k(tenants: str, connection: Connection) -> None:
    with psycopg.connect(tenants, autocommit=True) as tenant:
        found = [row[0] for row in tenant.execute("select image_id from imgsearch.similar(10, k => 50)").fetchall()]
        assert len(found) == 50
        assert all(image % 10 == 0 for image in found)
        true = connection.execute("select image_id from imgsearch.similar(10, k => 2000, exact => true)").fetchall()
        assert found == [row[0] for row in true if row[0] % 10 == 0][:50]
        with pytest.raises(psycopg.Error) as raised:
            tenant.execute("select * from imgsearch.similar(11)")
        assert raised.value.sqlstate == "PI004"


def test_tables_and_views_hide_the_others(tenants: str) -> None:
    with psycopg.connect(tenants, autocommit=True) as tenant:
        assert tenant.execute("select count(*) from imgsearch.embedding_test_16").fetchone() == (200,)
        assert tenant.execute("select count(*) from imgsearch.images_test").fetchone() == (200,)
        top = tenant.execute(
            "select content_id from imgsearch.embedding_test_16 order by embedding <=> (select embedding from imgsearch.images_test limit 1) limit 5"
        ).fetchall()
        assert all(row[0] % 10 == 0 for row in top)


def test_nobody_goes_round_the_policy_by_a_partition(tenants: str, connection: Connection) -> None:
    connection.execute("truncate imgsearch.embedding_test_16")
    connection.execute("select imgsearch.partition_embeddings('test', 3)")
    add_vectors(connection, "embedding_test_16", clustered(2000, 16))
    build_index(connection, get_model(connection, "test"), BuildOptions(64))
    row = connection.execute(
        "select min(relid::text) from pg_partition_tree('imgsearch.embedding_test_16') where isleaf"
    ).fetchone()
    assert row is not None
    part = f"select count(*) from {row[0]}"
    with psycopg.connect(tenants, autocommit=True) as tenant:
        assert len(tenant.execute("select image_id from imgsearch.similar(10, k => 50)").fetchall()) == 50
        assert tenant.execute("select count(*) from imgsearch.embedding_test_16").fetchone() == (200,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            tenant.execute(part)  # type: ignore[call-overload]
        connection.execute("select imgsearch.grant_access('tenant', 'reader')")  # on all tables there are
        assert tenant.execute(part).fetchone() == (0,)  # type: ignore[call-overload]


def test_a_reader_cannot_write_and_a_writer_can(connection: Connection, admin: Connection, url: str) -> None:
    add_images(connection, 5)
    model = add_model(connection, "test", 16)
    for role in ("some_reader", "some_writer"):
        admin.execute(f"drop role if exists {role}")
        admin.execute(f"create role {role} login")
        connection.execute("select imgsearch.grant_access(%s, %s)", [role, role.removeprefix("some_")])
    later = add_model(connection, "later", 16)  # grants reach models that come afterwards
    insert = "insert into imgsearch.{} values (1, array_fill(0.1, array[16])::vector)"
    with psycopg.connect(url.replace("pgimgsearch@", "some_reader@"), autocommit=True) as reader:
        for table in (model.table_name, later.table_name):
            assert reader.execute(f"select count(*) from imgsearch.{table}").fetchone() == (0,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(insert.format(table))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("delete from imgsearch.image")
    with psycopg.connect(url.replace("pgimgsearch@", "some_writer@"), autocommit=True) as writer:
        for table in (model.table_name, later.table_name):
            writer.execute(insert.format(table))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            writer.execute("drop table imgsearch.image")
    drop_roles(url, "some_reader", "some_writer")


def test_a_writer_ingests_and_a_reader_searches_by_command(
    connection: Connection, admin: Connection, url: str, cli: Callable[..., Any], photos: Path
) -> None:
    cli("models", "add", "palette")
    for role in ("some_writer", "some_reader"):
        admin.execute(f"drop role if exists {role}")
        admin.execute(f"create role {role} login")
        connection.execute("select imgsearch.grant_access(%s, %s)", [role, role.removeprefix("some_")])
    wrote = cli("ingest", str(photos), "-m", "palette", db=url.replace("pgimgsearch@", "some_writer@"))
    assert wrote.returncode == 0, wrote.stderr
    assert "ask the owner of the database to run: pgimgsearch index build palette" in wrote.stderr
    assert connection.execute("select count(*) from imgsearch.embedding_palette_32").fetchone() == (12,)
    reader = url.replace("pgimgsearch@", "some_reader@")
    for arguments in (
        ["search", "--text", "teal"],
        ["search", "--id", "1"],
        ["stats"],
        ["doctor"],
        ["duplicates"],
        ["models", "list"],
    ):
        done = cli(*arguments, db=reader)
        assert done.returncode == 0, (arguments, done.stderr)
    drop_roles(url, "some_reader", "some_writer")


def test_granting_to_nobody_says_so(connection: Connection) -> None:
    with pytest.raises(psycopg.Error, match="there is no role nobody_at_all") as raised:
        connection.execute("select imgsearch.grant_access('nobody_at_all')")
    assert raised.value.sqlstate == "PI008"
