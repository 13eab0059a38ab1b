"""Collections: found by name or by the folder that they hold."""

import itertools

import psycopg

from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import SourceError

# Under row-level security, what is put into a collection is its owner's. Who sees all images, as the owner of the
# tables and a superuser do, is often a member of the tenants' roles, and puts nothing into their collections.
OURS = """(not (select relrowsecurity from pg_catalog.pg_class where oid = 'imgsearch.image'::regclass)
           or owner = current_user
           or row_security_active('imgsearch.image') and collection_id in (select imgsearch.own_collections()))"""


def open_collection(
    connection: Connection, name: str | None, root: str | None, default_name: str
) -> tuple[int, str, str]:
    """Find or make the collection that a root belongs to. Returns (collection_id, name, its root).

    Without a name, the collection with the deepest root at or above ``root`` is taken, else one is made. Files that are
    not below the root of a named one have absolute paths in it.
    """
    if name is None and root is not None:
        found = connection.execute(
            f"select collection_id, name, root from imgsearch.collection where {OURS} and "  # noqa: S608
            "(%s = root or starts_with(%s, rtrim(root, '/') || '/')) order by length(root) desc limit 1",
            [root, root],
        ).fetchone()
        if found:
            return found[0], found[1], found[2]
    wanted = name or _free_name(connection, default_name, root)
    found = connection.execute(
        f"select collection_id, name, coalesce(root, ''), {OURS}, owner from imgsearch.collection "  # noqa: S608
        "where name = %s",
        [wanted],
    ).fetchone()
    if found and not found[3]:
        raise SourceError(
            f"collection {wanted} belongs to the role {found[4]}, who would own what is put there",
            hint="choose another collection, or connect as that role",
        )
    if found:
        return found[0], found[1], found[2]
    try:
        with connection.transaction():
            row = connection.execute(
                "insert into imgsearch.collection (name, root) values (%s, %s) returning collection_id", [wanted, root]
            ).fetchone()
    except psycopg.errors.UniqueViolation as error:
        raise SourceError(
            f"collection {wanted} was made by another session or role meanwhile",
            hint="choose a name: --collection NAME",
        ) from error
    assert row is not None
    return row[0], wanted, root or ""


def _free_name(connection: Connection, wanted: str, root: str | None) -> str:
    """A name that no collection of another folder has; a list or query has none, and goes where it went before."""
    if root is None:
        return wanted
    rows = connection.execute(
        "select name from imgsearch.collection where starts_with(name, %s) and root is distinct from %s", [wanted, root]
    ).fetchall()
    taken = {name for (name,) in rows}
    return next(one for n in itertools.count(1) if (one := wanted if n == 1 else f"{wanted}-{n}") not in taken)
