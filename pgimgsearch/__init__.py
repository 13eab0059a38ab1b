"""Image search inside Postgres: embed images into pgvector columns, then ask in SQL."""

__version__ = "0.1.0"
