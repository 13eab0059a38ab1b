"""Images that a query of the database names."""

from collections.abc import Iterator
from pathlib import Path

from psycopg.rows import dict_row

from pgimgsearch.database.connection import connect
from pgimgsearch.sources.listing import file_from_row
from pgimgsearch.sources.source import ScannedFile, Source


def sql_source(url: str, query: str) -> Source:
    """Paths and URLs from a query with a column ``path`` or ``url``, as a list has them; read in one transaction."""
    folder = Path.cwd()

    def files(root: str) -> Iterator[ScannedFile]:
        with connect(url, check=False, own_settings=False) as connection, connection.transaction():
            connection.execute("set transaction read only")
            with connection.cursor("ingest", row_factory=dict_row) as cursor:
                for row in cursor.execute(query):
                    yield file_from_row(row, folder, root)

    return Source(f"query {query}", "query", str(folder), files)
