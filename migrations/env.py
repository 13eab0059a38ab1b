"""Alembic's entry: one transaction for functions, revisions and functions again (see database/migrate.py)."""

from alembic import context

attributes = context.config.attributes
options = {"version_table_schema": "imgsearch", "transaction_per_migration": False}
if context.is_offline_mode():
    context.configure(dialect_name="postgresql", **options)
else:
    context.configure(connection=attributes["connection"], **options)

run_sql = attributes["run_sql"]
with context.begin_transaction():
    if context.is_offline_mode():
        run_sql("create schema if not exists imgsearch")
    run_sql(attributes["before"])
    context.run_migrations()
    run_sql(attributes["after"])
