"""The second model answers from now on."""

from alembic import op

revision = "switch"
down_revision = "second_model"


def upgrade() -> None:
    """Refused until it has all stored images."""
    op.switch_alias("default", "pdq")


def downgrade() -> None:
    """Back, also where images came without it meanwhile."""
    op.switch_alias("default", "palette", allow_missing=None)
