"""The shop's Alembic environment: an ordinary one, and three hooks of pgimgsearch."""

import os
import sys
from pathlib import Path

from alembic import context
from sqlalchemy import create_engine, make_url

from pgimgsearch.operations.alembic import include_name, include_object, render_item

sys.path.insert(0, str(Path(__file__).parent.parent))
from shop import metadata

options = {
    "target_metadata": metadata,
    "transaction_per_migration": True,
    "include_schemas": True,
    "include_name": include_name,
    "include_object": include_object,
    "render_item": render_item,
}

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()
