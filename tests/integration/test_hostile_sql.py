"""Whatever text, name or filter comes in: it is data. And a dump goes where its owner is no superuser."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.embedded_programs import binaries
from pgimgsearch.database.models import get_model
from pgimgsearch.indexing.build import BuildOptions, build_index
from tests.conftest import filled
from tests.support.builders import add_images, add_model, add_vectors, clustered

HOSTILE = [
    "'; drop table imgsearch.image; --",
    '"',
    "''",
    "$$",
    "%s",
    "%I",
    "\\",
    "{}",
    "a\nb",
    "ⅷ",
    "e'\\x",
    "1; select 1",
]
texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)), max_leaves=6,
)  # fmt: skip
CALLS = [
    "select * from imgsearch.similar(1, k => 3, model => %(name)s)",
    "select * from imgsearch.similar(1, k => 3, collection => %(name)s)",
    "select * from imgsearch.similar(1, k => 3, filter => %(filter)s)",
    "select * from imgsearch.search_text(%(text)s, k => 3, template => %(name)s, filter => %(filter)s)",
    "select * from imgsearch.search_text(%(text)s)",
    "select * from imgsearch.search_hybrid(%(text)s, filter => %(filter)s)",
    "select * from imgsearch.search_mixed(1, %(text)s, filter => %(filter)s)",
    "select * from imgsearch.similar_fused(1, array['test', %(name)s], filter => %(filter)s)",
    "select * from imgsearch.similar_groups(%(text)s::text)",
    "select * from imgsearch.similar_groups(1, aggregate => %(name)s)",
    "select * from imgsearch.classify(1, array[%(text)s, %(name)s])",
    "select * from imgsearch.predict_label(1, %(text)s, filter => %(filter)s)",
    "select * from imgsearch.duplicates_of(1, filter => %(filter)s, model => %(name)s)",
    "select imgsearch.set_alias(%(text)s, %(name)s)",
    "select imgsearch.recall(%(name)s)",
    "select imgsearch.grant_access(%(name)s, %(text)s)",
    "select imgsearch.connect_embedder(%(name)s, 1, %(text)s, %(name)s)",
]


@pytest.fixture(scope="module")
def template(admin: Connection, server: str, template: str) -> Iterator[str]:
    yield from filled(admin, server, template, fill)


@pytest.fixture
def world(connection: Connection) -> Connection:
    connection.execute("select '[1]'::vector")  # loads the library, and with it the settings that are counted
    return connection


def fill(connection: Connection) -> None:
    """Forty images with two models, of which one has a hostile name, and both are asked by alias and name."""
    add_images(connection, 40)
    for name in ("test", HOSTILE[0]):
        model = add_model(connection, name, 16)
        add_vectors(connection, model.table_name, clustered(40, 16))
        build_index(connection, model, BuildOptions(64))
    connection.execute("update imgsearch.model set has_text = true, logit_scale = 10")
    connection.execute("select imgsearch.set_alias('text', 'test')")
    for text in HOSTILE:
        connection.execute("select imgsearch.cache_text(%s, imgsearch.embedding(2), 'test')", [text])


def census(connection: Connection) -> Any:
    return connection.execute(
        "select (select count(*) from imgsearch.image), (select count(*) from imgsearch.model), "
        "(select count(*) from pg_class where relnamespace = 'imgsearch'::regnamespace), "
        "(select count(*) from pg_roles), current_setting('hnsw.ef_search')"
    ).fetchone()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=st.sampled_from(CALLS), name=st.one_of(st.just("test"), texts), text=texts, value=json_values)
def test_nothing_that_comes_in_is_run(world: Connection, call: str, name: str, text: str, value: Any) -> None:
    before = census(world)
    state: str | None = "PI000"
    try:
        world.execute(call, {"name": name, "text": text, "filter": json.dumps(value)})  # type: ignore[call-overload]
    except psycopg.Error as error:
        state = error.sqlstate
    # ours, or of a value that Postgres itself cannot hold: a huge number, a zero byte in JSON
    assert str(state).startswith("PI") or state in {"22P05", "22003", "22P02"}
    world.execute("delete from imgsearch.alias where alias not in ('default', 'text')")
    assert census(world) == before


def test_a_hostile_name_works_as_any_other(world: Connection) -> None:
    rows = world.execute("select image_id from imgsearch.similar(1, model => %s)", [HOSTILE[0]]).fetchall()
    assert rows == world.execute("select image_id from imgsearch.similar(1)").fetchall()
    assert get_model(world, HOSTILE[0]).name == HOSTILE[0]


def test_a_dump_is_restored_by_an_owner_who_is_no_superuser(world: Connection, url: str, empty_url: str) -> None:
    def run(program: str, *arguments: str, **options: Any) -> bytes:
        done = subprocess.run([str(binaries() / program), *arguments], capture_output=True, check=False, **options)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    answers = "select image_id, similarity from imgsearch.similar(1, k => 5)"
    expected = world.execute(answers).fetchall()
    dump = run("pg_dump", "--format=custom", "--schema=imgsearch", url)
    run("pg_restore", "--no-owner", "--exit-on-error", "--dbname", empty_url, input=dump)
    with psycopg.connect(empty_url, autocommit=True) as restored:
        assert restored.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() == (False,)
        assert restored.execute(answers).fetchall() == expected
        assert restored.execute("select imgsearch.recall(sample => 10)").fetchone() is not None
        model = add_model(restored, "later", 16)
        add_vectors(restored, model.table_name, clustered(40, 16))
        assert len(restored.execute("select from imgsearch.similar(1, model => 'later')").fetchall()) == 10
