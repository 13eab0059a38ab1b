"""${message}"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Go forward."""
    op.get_context().config.attributes["run_sql"]("")


def downgrade() -> None:
    """Go back."""
    op.get_context().config.attributes["run_sql"]("")
