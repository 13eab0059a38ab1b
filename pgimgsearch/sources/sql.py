"""Images that a query of the database names."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from psycopg import Cursor, DataError, Error, ServerCursor, adapters
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.rows import dict_row

from pgimgsearch.database.connection import connect
from pgimgsearch.errors import SourceError
from pgimgsearch.sources.json_values import Unreadable
from pgimgsearch.sources.listing import files_from_rows
from pgimgsearch.sources.rows import Row
from pgimgsearch.sources.source import ScannedFile, Source

TABLE = re.compile(r'\bfrom\s+(?:only\s+)?(?:"?\w+"?\.)?"?(\w+)"?', re.IGNORECASE)


class _OrText(Loader):
    """A value as Python has it; what is beyond that, as the year 10,000 or infinity, as the text of Postgres."""

    inner: type[Loader]

    def load(self, data: Buffer) -> Any:
        try:
            return self.inner(self.oid, self.connection).load(data)
        except (DataError, ValueError, OverflowError):
            return bytes(data).decode()


class _Json(Loader):
    """JSON; what is nested too deeply fails its row."""

    def load(self, data: Buffer) -> Any:
        try:
            return json.loads(bytes(data))
        except (ValueError, RecursionError) as error:
            return Unreadable(str(error))


LOADERS: dict[str, type[Loader]] = {"json": _Json, "jsonb": _Json} | {
    name: type(f"{name}OrText", (_OrText,), {"inner": adapters.get_loader(adapters.types[name].oid, Format.TEXT)})
    for name in ("date", "time", "timetz", "timestamp", "timestamptz", "interval")
}


def sql_source(url: str, query: str) -> Source:
    """Paths and URLs from a query with a column ``path`` or ``url``, as a list has them.

    Relative paths are below the collection's root. The server keeps the rows as of one moment, and no transaction stays
    open while images are embedded. A query that cannot run raises here, before anything is made for it.
    """
    with _cursor(url, query):
        pass

    def files(root: str) -> Iterator[ScannedFile]:
        with _cursor(url, query, withhold=True) as cursor:
            rows = (Row(number, row) for number, row in enumerate(cursor, 1))
            yield from files_from_rows(rows, Path(root) if root else None, root)

    table = TABLE.search(query)
    return Source(f"query {query}", table[1] if table else "query", None, files)


@contextmanager
def _cursor(url: str, query: str, *, withhold: bool = False) -> Iterator[ServerCursor[dict[str, Any]]]:
    """A cursor over a query that only reads; one that is not withheld has run nothing yet."""
    with ExitStack() as stack:
        connection = stack.enter_context(connect(url, check=False, own_settings=False))
        cursor = connection.cursor("ingest", row_factory=dict_row, withhold=withhold)
        stack.callback(_close, cursor)
        for name, loader in LOADERS.items():
            cursor.adapters.register_loader(name, loader)
        with connection.transaction():
            connection.execute("set transaction read only")
            cursor.execute(query)
            columns = Counter(column.name for column in cursor.description or ())
        if twice := [name for name, number in columns.items() if number > 1]:
            raise SourceError(f"the query has two columns {twice[0]}", hint="give each a name of its own: ... as NAME")
        if not {"path", "url"} & columns.keys():
            raise SourceError("the query has neither path nor url", hint="name a column path or url")
        yield cursor


def _close(cursor: ServerCursor[dict[str, Any]]) -> None:
    try:
        cursor.close()
    except Error:  # the server has none, after an error that this one would hide
        Cursor.close(cursor)
