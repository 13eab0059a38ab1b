"""Where the user's database is: one of their own, or the embedded one, which is started and prepared."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgimgsearch.database.connection import check_schema, connect, current_revision
from pgimgsearch.database.embedded import Embedded
from pgimgsearch.database.functions import head_revision
from pgimgsearch.settings import Settings

SECRETS = {"password", "sslpassword"}


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """The URL of the user's database, or of the embedded one, started and prepared for the time of use."""
    if settings.db:
        yield settings.db
        return
    forget_libpq_settings()
    with Embedded(settings.home).running() as url:
        prepare_embedded(url)
        yield url


def forget_libpq_settings() -> None:
    """Connect to the embedded server as it is, whatever PGHOSTADDR, PGOPTIONS or PGSERVICE say of other servers."""
    for name in [name for name in os.environ if name.startswith("PG") and not name.startswith("PGIMGSEARCH_")]:
        del os.environ[name]


def shown_url(url: str) -> str:
    """A URL or connection string as it may be shown: without its password."""
    if "://" not in url:
        fields = {name: value for name, value in conninfo_to_dict(url).items() if name not in SECRETS}
        return make_conninfo(**fields)  # type: ignore[arg-type]
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name not in SECRETS])
    return urlunsplit(parts._replace(netloc=f"{login.partition(':')[0]}{at}{host}", query=query))


def prepare_embedded(url: str) -> None:
    """Bring the embedded database, which is ours, to the newest revision; refuses a schema of another version."""
    with connect(url, check=False) as connection:
        current = current_revision(connection)
        check_schema(connection, current)
    if current != head_revision():
        from pgimgsearch.database import migrate  # Alembic is imported only to migrate

        migrate.upgrade(url)
