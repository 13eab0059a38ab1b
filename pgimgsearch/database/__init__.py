"""Postgres: the embedded server, connections, migrations, the store of images and vectors, indexes."""
