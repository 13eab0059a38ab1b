"""The embedder: holds models and answers with vectors, over the Postgres protocol and over HTTP."""
