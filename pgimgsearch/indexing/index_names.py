"""The names of a model's indexes, and of the tables that they are on."""

from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.indexing.methods import method_of

SUFFIXES = {"hnsw": "_hnsw", "hnsw-binary": "_bits", "ivfflat": "_ivf", "diskann": "_disk"}
BUILDING, OLD = "_new", "_old"  # ends of a name while the index is built, and when another has taken its place


def index_name(model: StoredModel, method: str | None = None) -> str:
    """The name of a model's index, without the schema; of the method that is wanted, unless told."""
    return model.table_name + SUFFIXES[method or method_of(model)]


def partitions(connection: Connection, model: StoredModel) -> list[str]:
    """The tables that hold a model's vectors; of one in one piece that itself."""
    rows = connection.execute(
        "select c.relname from pg_partition_tree(%s::regclass) t join pg_class c on c.oid = t.relid "
        "where t.isleaf order by 1",
        [f"imgsearch.{model.table_name}"],
    ).fetchall()
    return [row[0] for row in rows] or [model.table_name]


def names(connection: Connection, model: StoredModel, method: str | None = None) -> list[str]:
    """What its indexes of a method are named, or may be of whatever method, those over partitions first."""
    tables = dict.fromkeys([model.table_name, *partitions(connection, model)])
    return [table + SUFFIXES[one] for table in tables for one in ([method] if method else SUFFIXES)]


def named(name: str) -> sql.Identifier:
    """An index or a table of ours, quoted."""
    return sql.Identifier("imgsearch", name)
