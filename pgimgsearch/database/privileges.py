"""What the current role may do."""

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel


def owns_table(connection: Connection, model: StoredModel) -> bool:
    """Whether this role may index a model's table."""
    row = connection.execute(
        "select pg_has_role(relowner, 'usage') from pg_class where oid = %s::regclass",
        [f"imgsearch.{model.table_name}"],
    ).fetchone()
    return row == (True,)


def can_change_models(connection: Connection) -> bool:
    """Whether this role may change models here; a reader may not, and nobody on a replica."""
    row = connection.execute(
        "select has_table_privilege('imgsearch.model', 'update') and not pg_is_in_recovery()"
    ).fetchone()
    return row == (True,)


def owns_schema(connection: Connection) -> bool:
    """Whether this role owns the schema's tables, and so may make tables and indexes."""
    row = connection.execute(
        "select pg_has_role(relowner, 'usage') from pg_class where oid = 'imgsearch.image'::regclass"
    ).fetchone()
    return row == (True,)


def has_tenants(connection: Connection) -> bool:
    """Whether row-level security is on, so that roles see parts of the images."""
    row = connection.execute("select relrowsecurity from pg_class where oid = 'imgsearch.image'::regclass").fetchone()
    return row == (True,)


def can_write_texts(connection: Connection) -> bool:
    """Whether this role may write to the cache of texts; a reader may not, and nobody on a replica."""
    row = connection.execute("select imgsearch._may_cache_texts() and not pg_is_in_recovery()").fetchone()
    return row == (True,)
