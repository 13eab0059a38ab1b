"""The first model, which everyone asks by default."""

from alembic import op

revision = "first_model"
down_revision = "products"


def upgrade() -> None:
    """Declare it; its vectors come with ``pgimgsearch ingest``."""
    op.add_embedding_model("palette")
    op.switch_alias("default", "palette")


def downgrade() -> None:
    """Its vectors go."""
    op.switch_alias("default", None)
    op.drop_embedding_model("palette")
