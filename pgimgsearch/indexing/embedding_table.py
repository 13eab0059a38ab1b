"""The tables that hold a model's vectors: the live one, and its shadow while one is loaded."""

from dataclasses import dataclass

from psycopg import sql

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel


@dataclass(frozen=True, slots=True)
class EmbeddingTable:
    """A table of one model's vectors, by its name without the schema."""

    name: str
    partitions: int

    @property
    def identifier(self) -> sql.Identifier:
        """The table, quoted."""
        return sql.Identifier("imgsearch", self.name)


def live_table(model: StoredModel) -> EmbeddingTable:
    """The table that searches read."""
    return EmbeddingTable(model.table_name, model.partitions)


def shadow_table(connection: Connection, model: StoredModel) -> EmbeddingTable | None:
    """A model's shadow table, if there is one and this role may read it."""
    row = connection.execute(
        "select t.name from imgsearch.model m, imgsearch._embedding_table(m, 'shadow') t (name) where m.model_id = %s "
        "and has_table_privilege(to_regclass(format('imgsearch.%%I', t.name)), 'select')",
        [model.model_id],
    ).fetchone()
    if row is None:
        return None
    return EmbeddingTable(row[0], len(partition_names(connection, row[0])))


def partition_names(connection: Connection, table: str) -> list[str]:
    """The tables that hold the rows of a table: its partitions, or itself."""
    rows = connection.execute(
        "select c.relname from pg_partition_tree(format('imgsearch.%%I', %s::text)::regclass) t "
        "join pg_class c on c.oid = t.relid where t.isleaf order by 1",
        [table],
    ).fetchall()
    return [row[0] for row in rows] or [table]


def count_rows(connection: Connection, table: EmbeddingTable) -> int:
    """How many vectors a table holds."""
    row = connection.execute(sql.SQL("select count(*) from {}").format(table.identifier)).fetchone()
    assert row is not None
    return int(row[0])
