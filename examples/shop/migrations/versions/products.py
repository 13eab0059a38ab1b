"""Products, each with its image."""

import pgvector.sqlalchemy
import sqlalchemy as sa
from alembic import op

revision = "products"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "product",
        sa.Column("product_id", sa.BigInteger(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("image_id", sa.BigInteger(), sa.ForeignKey("imgsearch.image.image_id", ondelete="SET NULL")),
        sa.Column("taste", pgvector.sqlalchemy.VECTOR(3)),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("product")
