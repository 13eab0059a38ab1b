"""Where the user's database is: one of their own, or the embedded one, which is started and prepared."""

from collections.abc import Iterator
from contextlib import contextmanager

from pgimgsearch.database.connection import check_schema, connect, current_revision
from pgimgsearch.database.embedded import Embedded
from pgimgsearch.database.functions import head_revision
from pgimgsearch.settings import Settings


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """The URL of the user's database, or of the embedded one, started and prepared for the time of use."""
    if settings.db:
        yield settings.db
        return
    with Embedded(settings.home).running() as url:
        prepare_embedded(url)
        yield url


def prepare_embedded(url: str) -> None:
    """Bring the embedded database, which is ours, to the newest revision; refuses a schema of another version."""
    with connect(url, check=False) as connection:
        current = current_revision(connection)
        check_schema(connection, current)
    if current != head_revision():
        from pgimgsearch.database import migrate  # Alembic is imported only to migrate

        migrate.upgrade(url)
