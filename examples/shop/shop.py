"""The shop's own tables."""

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import BigInteger, Column, ForeignKey, MetaData, Table, Text

metadata = MetaData()

# Named so that foreign keys can point at it; it belongs to pgimgsearch, and the hooks in env.py leave it alone.
image = Table("image", metadata, Column("image_id", BigInteger, primary_key=True), schema="imgsearch")

product = Table(
    "product",
    metadata,
    Column("product_id", BigInteger, primary_key=True),
    Column("name", Text, nullable=False),
    Column("image_id", BigInteger, ForeignKey(image.c.image_id, ondelete="SET NULL")),
    Column("taste", VECTOR(3)),
)
