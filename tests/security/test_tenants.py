"""Row-level security: a tenant sees and can change what it would in a database in which the other one never was."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgimgsearch.database.collections import open_collection
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import get_model
from pgimgsearch.duplicates import cluster, find
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.errors import SourceError
from pgimgsearch.indexing.build import BuildOptions, build_index
from pgimgsearch.reporter import SILENT
from tests.support.calls import CALLS, MODELS, fill, in_order, public_functions
from tests.support.roles import drop_roles

# What is of the deployment and not of its tenants, and the sizes of tables, which Postgres' own catalogue shows to everyone.
SHARED = {"alembic_version", "alias", "alias_history", "canary", "duplicate_scan", "model", "reduction"}
MADE_OF_ALL = {
    "timings",
    "placement",
    "source",
    "root",
    "cluster",
    "size",
    "probability",
}  # folders of the test; clusters
POLICY = """
alter table imgsearch.image enable row level security;
create policy tenant on imgsearch.image using (collection_id in (select imgsearch.own_collections()));
"""


def prepare(admin: Connection, server: str, template: str, folder: Path, name: str, *tenants: str) -> str:
    """A database with images of tenants, which share files and have similar ones; the owner has done what owners do."""
    admin.execute(f"create database {name} template {template} owner pgimgsearch")  # type: ignore[call-overload]
    url = f"postgresql://pgimgsearch@/{name}?host={server}"
    open_models(url, ModelRequest(list(MODELS)), [], reporter=SILENT)
    with psycopg.connect(url, autocommit=True) as owner:
        for tenant in ("tenant_a", "tenant_b"):
            owner.execute("select imgsearch.grant_access(%s, 'writer')", [tenant])
        owner.execute(POLICY)
    seeds = {"tenant_a": range(8), "tenant_b": range(4, 12)}
    (folder / name).mkdir()
    for tenant in tenants:
        fill(url.replace("pgimgsearch@", f"{tenant}@"), folder / name, f"photos of {tenant}", seeds[tenant])
    with psycopg.connect(url, autocommit=True) as owner:
        for model in MODELS:
            build_index(owner, get_model(owner, model), BuildOptions(64))
        palette = get_model(owner, "palette")
        find.find(url, palette, 0.8)
        cluster.save(owner, palette, cluster.cluster(owner, palette, 3, 2, None, SILENT))
        owner.execute(
            "insert into imgsearch.calibration (model_id, collection_id, is_default, near, precision, copies, images, measured) "
            "select m.model_id, c.collection_id, c.name ~ 'tenant_a', "
            "0.9, 0.9, 0.1, 8, '{}' from imgsearch.model m, imgsearch.collection c"
        )
        owner.execute("select imgsearch.cache_text('red', ('[1' || repeat(',0', 31) || ']')::vector, 'palette')")
    return url


@pytest.fixture(scope="module")
def databases(
    admin: Connection, server: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """URLs of tenant_b: in a database with both tenants, and in one where it is alone."""
    for role in ("tenant_a", "tenant_b"):
        admin.execute(f"create role {role} login")  # type: ignore[call-overload]
    folder = tmp_path_factory.mktemp("tenants")
    urls = [
        prepare(admin, server, template, folder, "both_tenants", "tenant_a", "tenant_b"),
        prepare(admin, server, template, folder, "one_tenant", "tenant_b"),
    ]
    yield urls[0].replace("pgimgsearch@", "tenant_b@"), urls[1].replace("pgimgsearch@", "tenant_b@")
    for url, name in zip(urls, ("both_tenants", "one_tenant"), strict=True):
        drop_roles(url, "tenant_a", "tenant_b", keep=name == "both_tenants")
        admin.execute(f"drop database {name} with (force)")  # type: ignore[call-overload]


def relations(connection: Connection) -> list[str]:
    """All tables and views of ours."""
    rows = connection.execute(
        "select relname from pg_class where relnamespace = 'imgsearch'::regnamespace and relkind in ('r', 'p', 'v') order by 1"
    ).fetchall()
    return [row[0] for row in rows]


class Names:
    """Ids in words that both databases have: of images their keys, of contents their hashes."""

    def __init__(self, connection: Connection) -> None:
        self.images = dict(connection.execute("select image_id, key from imgsearch.image").fetchall())
        self.contents = dict(
            connection.execute("select content_id, encode(sha256, 'hex') from imgsearch.content").fetchall()
        )

    def row(self, row: dict[str, Any]) -> str:
        """A row without times and numbers of rows, as text."""
        named: dict[str, Any] = {}
        for column, value in row.items():
            if column in {"content_a", "content_b", "image_a", "image_b"}:  # in the order of ids
                names = self.contents if column.startswith("content") else self.images
                named["pair"] = sorted([*named.get("pair", []), names.get(value, f"unknown {value}")])
            elif column in {"content_id", "representative_id"}:
                named[column] = self.contents.get(value, f"unknown content {value}")
            elif column == "image_id":
                named[column] = self.images.get(value, f"unknown image {value}")
            elif not column.endswith(("_id", "_at", "_collections")) and column not in MADE_OF_ALL:
                named[column] = value
        return json.dumps(named, default=str, sort_keys=True)


def rows(connection: Connection, names: Names, query: str) -> list[str] | str:
    """The rows of a query, or its error."""
    try:
        found = connection.execute(f"select to_jsonb(x) from ({query}) x").fetchall()  # type: ignore[call-overload]
    except psycopg.Error as error:
        return f"{error.sqlstate} {error.diag.message_primary}"
    return sorted(names.row(row[0]) if isinstance(row[0], dict) else str(row[0]) for row in found)


def both(databases: tuple[str, str], work: Callable[[Connection, Names], Any]) -> list[Any]:
    """What work finds as tenant_b in each database."""
    found = []
    for url in databases:
        with psycopg.connect(url, autocommit=True) as tenant:
            found.append(work(tenant, Names(tenant)))
    return found


def test_every_relation_looks_as_if_the_other_tenant_never_was(databases: tuple[str, str]) -> None:
    def look(tenant: Connection, names: Names) -> dict[str, Any]:
        return {
            name: rows(tenant, names, f"select * from imgsearch.{name}")
            for name in relations(tenant) if name not in SHARED
        }  # fmt: skip

    shared, alone = both(databases, look)
    assert shared == alone
    empty = {name for name, found in shared.items() if not found}
    assert empty == {"duplicate_verdict", "evaluation_run"}, "what is empty shows nothing"
    assert {name for name, found in shared.items() if isinstance(found, str)} == {"content_claim", "text_embedding"}


def test_every_function_answers_as_if_the_other_tenant_never_was(databases: tuple[str, str]) -> None:
    def ask(tenant: Connection, names: Names) -> dict[str, Any]:
        assert public_functions(tenant) == CALLS.keys()
        images = sorted((key, image) for image, key in names.images.items())
        found = {}
        for name in in_order():
            for (_, image), (_, other) in pairwise(images[:7]):
                call = CALLS[name].format(image=image, other=other, role="tenant_a")
                found[name, names.images[image]] = rows(tenant, names, f"select * from {call}")
        return found

    shared, alone = both(databases, ask)
    assert shared == alone
    answered = {name for (name, _), found in shared.items() if isinstance(found, list) and found}
    assert answered >= {
        "similar",
        "search_text",
        "search_hybrid",
        "duplicates",
        "clusters",
        "coverage",
        "duplicate_groups",
    }


def test_a_writer_sees_no_content_by_adding_an_image_of_it(databases: tuple[str, str]) -> None:
    with psycopg.connect(databases[0], user="pgimgsearch") as owner:
        every = [row[0] for row in owner.execute("select content_id from imgsearch.content order by 1").fetchall()]
    with psycopg.connect(databases[0], autocommit=True) as tenant:
        collection = tenant.execute(
            "insert into imgsearch.collection (name) values ('guesses') returning collection_id"
        ).fetchone()
        assert collection is not None
        seen = {row[0] for row in tenant.execute("select content_id from imgsearch.content").fetchall()}
        unseen = [content for content in every if content not in seen]
        assert unseen
        for content in unseen:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=f"does not see content {content}"):
                tenant.execute(
                    "insert into imgsearch.image (content_id, collection_id, key, path) values (%s, %s, 'x', 'x')",
                    [content, collection[0]],
                )
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=f"does not see content {content}"):
                tenant.execute("update imgsearch.image set content_id = %s", [content])
        assert tenant.execute("select count(*) from imgsearch.content").fetchone() == (len(seen),)


def test_a_writer_chooses_no_ids(databases: tuple[str, str]) -> None:
    """Which would tell what others have, and take what the sequence gives next."""
    with psycopg.connect(databases[0], autocommit=True) as tenant:
        for table, columns in (
            ("image", "(image_id, content_id, collection_id, key, path) overriding system value values (7, 1, 1, 'x', 'x')"),
            ("collection", "(collection_id, name) overriding system value values (7, 'x')"),
            ("ingest_run", "(run_id, source, models) overriding system value values (7, 'x', '{}')"),
            ("evaluation_run", "(evaluation_id, protocol, data, model, questions, figures) overriding system value "
             "values (7, 'x', 'x', 'x', 1, '{}')"),
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
                tenant.execute(f"insert into imgsearch.{table} {columns}")  # type: ignore[call-overload]


def test_a_writer_changes_nothing_of_the_other_tenant(databases: tuple[str, str]) -> None:
    """The last test, as the tenant deletes all that is its own."""
    url = databases[0]
    with psycopg.connect(url.replace("tenant_b@", "tenant_a@"), autocommit=True) as other:
        names = Names(other)

        def state() -> dict[str, Any]:
            return {name: rows(other, names, f"select * from imgsearch.{name}") for name in relations(other)}

        before = state()
        with psycopg.connect(url) as tenant:
            for name in relations(tenant):
                columns = tenant.execute(
                    "select column_name from information_schema.columns where table_schema = 'imgsearch' and table_name = %s "
                    "and is_generated = 'NEVER' and is_identity = 'NO'", [name]
                ).fetchall()  # fmt: skip
                if not columns:
                    continue
                for attack in (*(f'update imgsearch.{name} set "{c}" = "{c}"' for (c,) in columns),
                               f"update imgsearch.{name} set {columns[0][0]} = null", f"delete from imgsearch.{name}",
                               f"truncate imgsearch.{name} cascade"):  # fmt: skip
                    try:
                        with tenant.transaction():
                            tenant.execute(attack)  # type: ignore[call-overload]
                    except psycopg.Error:
                        continue
            tenant.commit()
        assert state() == before
        assert names.images
        assert names.contents


@pytest.mark.parametrize("role", ["pgimgsearch", "postgres", "pgimgsearch, a member of tenant_a"])
def test_a_collection_of_another_role_takes_nothing_in(databases: tuple[str, str], role: str) -> None:
    """By its root above the folder, or by its name: what the owner ingests would be the tenant's to read and delete.

    A superuser is a member of every role.
    """
    with psycopg.connect(databases[0].replace("tenant_b@", "postgres@"), autocommit=True) as owner:
        for name, root in (("bait", "/"), ("deeper", "/srv/photos"), ("web", "https://"), ("none", None)):
            with owner.transaction(force_rollback=True):
                if "member" in role:
                    owner.execute("grant tenant_a to pgimgsearch")
                owner.execute("set local role tenant_a")
                owner.execute("insert into imgsearch.collection (name, root) values (%s, %s)", [name, root])
                bait = owner.execute("select max(collection_id) from imgsearch.collection").fetchone()
                owner.execute(f"set local role {role.partition(',')[0]}")  # type: ignore[call-overload]
                for place in ("/srv/photos/2024", "https://example.org/a.jpg", None):
                    assert (open_collection(owner, None, place, "new")[0],) != bait
                with pytest.raises(SourceError, match="belongs to the role tenant_a"):
                    open_collection(owner, name, "/srv/photos", "new")
                owner.execute("set local role tenant_a")
                assert (open_collection(owner, name, "/srv/photos", "new")[0],) == bait
