"""Roles that tests make for an application."""

import psycopg
from psycopg import sql

from pgimgsearch.database.retry import retry_on_deadlock


@retry_on_deadlock  # with autovacuum, which analyzes the tables of the grants
def drop_roles(url: str, *roles: str, keep: bool = False) -> None:
    """Drop roles with their grants in the database of a URL; ``keep`` drops the grants alone."""
    names = sql.SQL(", ").join(map(sql.Identifier, roles))
    with psycopg.connect(url, user="postgres", autocommit=True) as superuser:
        superuser.execute(sql.SQL("drop owned by {}").format(names))
        if not keep:
            superuser.execute(sql.SQL("drop role {}").format(names))
