"""Alembic's entry: one transaction for functions, revisions and functions again (see database/migrate.py)."""

from alembic import context

from pgimgsearch.database.migrate import BASE, plan_functions

config = context.config
attributes = config.attributes
target = attributes["target"]
before, after = plan_functions(attributes["start"], None if target == BASE else target, attributes["vector"])

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", version_table_schema="imgsearch", transaction_per_migration=False)
else:
    context.configure(
        connection=attributes["connection"], version_table_schema="imgsearch", transaction_per_migration=False
    )

run_sql = attributes["run_sql"]
with context.begin_transaction():
    if context.is_offline_mode():
        run_sql("create schema if not exists imgsearch")
    run_sql(before)
    context.run_migrations()
    run_sql(after)
