"""Measurements: one runnable file a question, each a ratio against a reference in the same run."""
