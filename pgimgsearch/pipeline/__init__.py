"""From a source to the database: scan, plan, read, decode, embed, copy in; each stage bounded and timed."""
