"""The first model, which everyone asks by default."""

from alembic import op

revision = "first_model"
down_revision = "products"


def upgrade() -> None:
    """Declare it; its vectors come with ``ingest`` or ``models fill``. Nothing serves yet, so nothing is missed."""
    op.add_embedding_model("palette")
    op.switch_alias("default", "palette", allow_missing=None)


def downgrade() -> None:
    """Its vectors go."""
    op.switch_alias("default", None)
    op.drop_embedding_model("palette")
