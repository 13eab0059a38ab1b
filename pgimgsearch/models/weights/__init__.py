"""Weights: downloaded or read from a folder, checked, and bundled for machines without a network."""
