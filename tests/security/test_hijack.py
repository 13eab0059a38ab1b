"""Who may create functions in public runs none of them through ours, whatever the search path of the caller."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgimgsearch
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.migrate import upgrade
from pgimgsearch.errors import SchemaError
from tests.support.calls import CALLS, fill, in_order, public_functions
from tests.support.images import photo
from tests.support.roles import drop_roles

# Functions, aggregates and operators by every name of pg_catalog and for its argument types, polymorphic ones for the types
# that our functions use: each raises. Found before those of pg_catalog with a search path that says so.
PLANT = """
do $plant$
declare
    concrete constant text[] := '{bigint,integer,text,double precision,real,boolean,jsonb,bytea,name,regclass,timestamptz,
        imgsearch.match,imgsearch.model,public.vector,public.halfvec,bit varying,interval,record}';
    p record;
    kind text;
    types text[];
    number integer := 0;
begin
    for p in
        select x.proname as name, x.prokind as prokind, null::text as operator, x.proargtypes::regtype[] as types,
               pg_get_function_result(x.oid) as result, x.provariadic <> 0 as variadic
        from pg_proc x where x.pronamespace = 'pg_catalog'::regnamespace and x.prokind in ('f', 'a', 'w')
        union all
        select 'operator', 'o', o.oprname, array_remove(array[o.oprleft, o.oprright]::regtype[], 0::regtype),
               o.oprresult::regtype::text, false
        from pg_operator o where o.oprnamespace = 'pg_catalog'::regnamespace
    loop
        foreach kind in array concrete loop
            types := array(select case when t::text in ('anyelement', 'anycompatible', 'anynonarray', '"any"') then kind
                                       when t::text in ('anyarray', 'anycompatiblearray') then kind || '[]'
                                       else t::text end from unnest(p.types) with ordinality u (t, n) order by n);
            begin
                number := number + 1;
                if p.prokind = 'f' then
                    execute format('create function public.%I(%s) returns %s language plpgsql as $h$ begin '
                        'raise exception ''hijacked by %s''; end $h$', p.name, array_to_string(types, ','),
                        case when p.result ~ 'any|record' then 'bigint' else p.result end, p.name);
                elsif p.prokind = 'o' then
                    execute format('create function public.planted_%s(%s) returns %s language plpgsql as $h$ begin '
                        'raise exception ''hijacked by operator''; end $h$', number, array_to_string(types, ','),
                        case when p.result ~ 'any' then 'bigint' else p.result end);
                    execute format('create operator public.%s (function = public.planted_%s, %s rightarg = %s)', p.operator,
                        number, case when cardinality(types) = 2 then 'leftarg = ' || types[1] || ',' else '' end,
                        types[cardinality(types)]);
                elsif cardinality(types) < 2 then
                    execute format('create function public.state_%s(%s) returns bigint language plpgsql as $h$ begin '
                        'raise exception ''hijacked by %s''; end $h$', number, array_to_string('bigint'::text || types, ','), p.name);
                    execute format('create aggregate public.%I(%s) (sfunc = public.state_%s, stype = bigint)', p.name,
                        coalesce(nullif(array_to_string(types, ','), ''), '*'), number);
                end if;
            exception when others then null;  -- pseudo types and the like
            end;
            exit when types = array(select t::text from unnest(p.types) with ordinality u (t, n) order by n);
        end loop;
    end loop;
end $plant$
"""
HIJACKED = "set search_path = public, pg_catalog"


@pytest.fixture(scope="module")
def template(admin: Connection, server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A filled database in which somebody has planted what they could."""
    name = "hijacked"
    admin.execute(f"create database {name} template {template} owner pgimgsearch")  # type: ignore[call-overload]
    url = f"postgresql://pgimgsearch@/{name}?host={server}"
    admin.execute("create role attacker login")
    fill(url, tmp_path_factory.mktemp("hijack"), "photos", range(6))
    with psycopg.connect(url, user="postgres", autocommit=True) as superuser:
        superuser.execute("grant create on schema public to attacker")
        superuser.execute("select imgsearch.grant_access('attacker', 'reader')")
    with psycopg.connect(url, user="attacker", autocommit=True) as attacker:
        attacker.execute("set search_path = pg_catalog")  # or it would run into its own
        attacker.execute(PLANT)
    yield name
    drop_roles(url, "attacker")
    admin.execute(f"drop database {name} with (force)")  # type: ignore[call-overload]


def test_the_attack_works(connection: Connection) -> None:
    """The planted functions take over what is not pinned: a test of the tests below."""
    connection.execute(
        "create function unpinned() returns bigint language plpgsql as 'begin return cardinality(array[1::bigint]); end'"
    )
    connection.execute(
        "create function unpinned_in() returns boolean language plpgsql as 'declare t text := 1; begin return t in (''1''); end'"
    )
    connection.execute(HIJACKED)
    for attacked in ("select unpinned()", "select unpinned_in()"):
        with pytest.raises(psycopg.Error, match="hijacked"):
            connection.execute(attacked)  # type: ignore[call-overload]


def test_every_public_function_runs_its_own(connection: Connection) -> None:
    assert public_functions(connection) == CALLS.keys()
    statements = {name: f"select from {CALLS[name]}".format(image=1, other=2, role="attacker") for name in in_order()}
    plain = {name: outcome(connection, statement) for name, statement in statements.items()}
    for statement in ("drop server if exists imgsearch_embedder cascade", "delete from imgsearch.duplicate_verdict"):
        connection.execute(statement)  # type: ignore[call-overload]
    connection.execute(HIJACKED)
    attacked = {name: outcome(connection, statement) for name, statement in statements.items()}
    assert attacked == plain
    assert not [said for said in attacked.values() if "hijacked" in said]


def outcome(connection: Connection, statement: str) -> str:
    """The number of rows, or the error."""
    literal = statement.replace("array_fill(0.1::real, array[32])", f"'[{','.join(['0.1'] * 32)}]'")
    literal = literal.replace("repeat('01', 128)", f"'{'01' * 128}'")
    try:
        return f"{len(connection.execute(literal).fetchall())} rows"  # type: ignore[call-overload]
    except psycopg.Error as error:
        return f"{error.sqlstate} {error}".splitlines()[0]


def test_every_function_is_pinned_or_bound(connection: Connection) -> None:
    loose = connection.execute(
        "select p.oid::regprocedure from pg_proc p where p.pronamespace = 'imgsearch'::regnamespace and p.prosqlbody is null "
        "and coalesce(p.proconfig::text, '') !~ 'search_path=pg_catalog, pg_temp'"
    ).fetchall()
    assert loose == []
    strangers = connection.execute(
        "select d.objid::regprocedure, pg_describe_object(d.refclassid, d.refobjid, 0) from pg_depend d "
        "join pg_proc p on p.oid = d.objid and p.pronamespace = 'imgsearch'::regnamespace "
        "left join pg_proc f on d.refclassid = 'pg_proc'::regclass and f.oid = d.refobjid "
        "left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid "
        "where d.classid = 'pg_proc'::regclass and coalesce(f.pronamespace, o.oprnamespace) <> 'imgsearch'::regnamespace "
        "and not exists (select from pg_depend e where e.classid = d.refclassid and e.objid = d.refobjid and e.deptype = 'e')"
    ).fetchall()
    assert strangers == []


def test_definers_are_few_and_those_for_writers_are_for_writers(connection: Connection, url: str) -> None:
    rows = connection.execute(
        "select p.proname, has_function_privilege('attacker', p.oid, 'execute') from pg_proc p "
        "where p.pronamespace = 'imgsearch'::regnamespace and p.prosecdef order by 1"
    ).fetchall()
    assert dict(rows) == {
        "_cache_texts": True, "_cached_texts": True, "_is_claimed": True, "_may_cache_texts": True, "_missing_texts": True,
        "_store_contents": True, "_sweep": True, "own_collections": True,
    }  # fmt: skip
    vector = "('[1' || repeat(',0', 31) || ']')::vector"
    with psycopg.connect(url, user="attacker", autocommit=True) as reader:
        for call in (
            "_sweep('{1}')", f"_cache_texts(m.name, m.fingerprint, '{{x}}', array[{vector}], '{{}}')",
            "_store_contents('{1}', array[sha256('x')], array[sha256('x')], '{1}', '{1}', '{1}', '{PNG}', '{null}', false)",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(f"select imgsearch.{call} from imgsearch.model m where m.name = 'palette'")  # type: ignore[call-overload]


def test_commands_run_their_own(url: str, admin: Connection, cli: Callable[..., Any], tmp_path: Path) -> None:
    """The same for the sessions of the command line, in a database whose search path is the attacker's."""
    name = url.partition("?")[0].rpartition("/")[2]
    admin.execute(f"alter database {name} set search_path = public, pg_catalog")  # type: ignore[call-overload]
    (tmp_path / "new").mkdir()
    for seed in range(20, 24):
        photo(tmp_path / "new" / f"{seed}.png", seed)
    for arguments in (
        ["ingest", str(tmp_path / "new"), "-m", "palette", "-m", "pdq", "--skip-duplicates"],
        ["ingest", str(tmp_path / "new"), "-m", "palette", "--prune"],
        ["db", "upgrade", "--functions"],
        ["search", "--id", "1"], ["search", "--text", "red"], ["stats"], ["doctor"], ["models", "list"],
        ["index", "build", "palette"], ["index", "status"], ["models", "switch", "default", "--to", "palette"],
        ["duplicates", "--model", "palette", "--threshold", "0.9"],
    ):  # fmt: skip
        done = cli(*arguments)
        assert "hijacked" not in done.stderr + done.stdout, (arguments, done.stderr)
        assert done.returncode in {0, 1}, (arguments, done.stderr)  # 1: doctor finds functions that are not ours
    with psycopg.connect(url, options="-c search_path=pg_catalog") as connection:
        assert connection.execute("select count(*) from imgsearch.image").fetchone() == (16,)


def test_every_connection_is_pinned() -> None:
    """Whoever opens one by itself sets its settings too."""
    opening = re.compile(r"psycopg\.connect\(|ConnectionPool\(")
    loose = [path.name for path in Path(pgimgsearch.__file__).parent.rglob("*.py") if opening.search(path.read_text())
             and "apply_settings" not in path.read_text() and "search_path" not in path.read_text()]  # fmt: skip
    assert loose == []


@pytest.mark.parametrize("grant", ["authorization intruder", "authorization pgimgsearch"])
def test_a_schema_of_another_role_is_refused(admin: Connection, server: str, grant: str) -> None:
    """Whoever made it beforehand, or may create in it, could put functions beside ours, which then run as the owner."""
    admin.execute("create role intruder")
    admin.execute("create database made_before owner pgimgsearch")
    try:
        with psycopg.connect(host=server, user="postgres", dbname="made_before", autocommit=True) as connection:
            connection.execute("create extension vector")
            connection.execute(f"create schema imgsearch {grant}")
            if "pgimgsearch" in grant:
                connection.execute("grant create on schema imgsearch to intruder")
        with pytest.raises(SchemaError, match="intruder may put functions into it"):
            upgrade(f"postgresql://pgimgsearch@/made_before?host={server}")
        with pytest.raises(SchemaError, match="may put functions into it"):
            upgrade(f"postgresql://postgres@/made_before?host={server}")
        if "intruder" in grant:  # as a tenant sees the deployment that it uses
            with psycopg.connect(host=server, user="postgres", dbname="made_before", autocommit=True) as connection:
                connection.execute("create table imgsearch.alembic_version ()")
            with pytest.raises(SchemaError, match="imgsearch of this database belongs to intruder"):
                upgrade(f"postgresql://pgimgsearch@/made_before?host={server}")
    finally:
        admin.execute("drop database made_before with (force)")
        admin.execute("drop role intruder")
