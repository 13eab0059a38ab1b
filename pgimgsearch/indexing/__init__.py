"""Vector indexes: built after the load, measured, and replaced while searches go on."""
