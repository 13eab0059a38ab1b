"""One ingest run: plan, read, decode, embed and write, each stage bounded and timed."""
