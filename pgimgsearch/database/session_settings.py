"""What our sessions set, whatever the role, the database or PGOPTIONS says; and poolers, which would lose it."""

import psycopg

from pgimgsearch.errors import DatabaseError

# Also the defence against functions and operators that somebody created in public: they are never found.
SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    # how values are written and read
    "client_encoding": "UTF8", "DateStyle": "ISO, MDY", "IntervalStyle": "postgres", "TimeZone": "UTC",
    "bytea_output": "hex", "extra_float_digits": "1", "array_nulls": "on", "quote_all_identifiers": "off",
    "standard_conforming_strings": "on", "row_security": "on", "plpgsql.extra_errors": "none",
    # how long our commands may take: a role's limits are meant for its applications
    "statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0", "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
}  # fmt: skip
NEWER = {170000: {"transaction_timeout": "0"}}  # server version -> what it has more
PROBES = 3


def apply_settings(connection: psycopg.Connection) -> None:
    """Set them until the session ends."""
    wanted = dict(SETTINGS)
    for version, settings in NEWER.items():
        wanted |= settings if connection.info.server_version >= version else {}
    connection.execute(
        "select pg_catalog.set_config(n.name, n.value, false) from rows from "
        "(pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])) as n (name, value)",
        [list(wanted), list(wanted.values())],
    )


def check_session(connection: psycopg.Connection, url: str) -> None:
    """Raise DatabaseError for a connection that has no session of its own, before it sets or locks anything."""
    if is_pooled(connection) and is_transaction_pooled(connection, url):
        raise DatabaseError(
            "this connection goes through a pooler in transaction mode, which keeps no locks and no settings for us",
            hint="give a direct connection, or one in session mode, with --db (Supabase: port 5432; Neon: the host "
            "without -pooler); applications may search through the pooler",
        )


def is_pooled(connection: psycopg.Connection) -> bool:
    """Whether something stands between this client and its server process."""
    return connection.info.backend_pid != _server_process(connection)


def is_transaction_pooled(connection: psycopg.Connection, url: str) -> bool:
    """Whether a pooler gives each transaction another session: a second client then gets ours, or drives us out."""
    with psycopg.connect(url, autocommit=True, application_name="pgimgsearch", connect_timeout=10) as other:
        for _ in range(PROBES):
            ours = _server_process(connection)
            with other.transaction():
                if _server_process(other) == ours or _server_process(connection) != ours:
                    return True
    return False


def _server_process(connection: psycopg.Connection) -> int:
    row = connection.execute("select pg_catalog.pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
