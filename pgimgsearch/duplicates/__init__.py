"""Duplicates: pairs are found and remembered, thresholds measured, and copies put away."""
