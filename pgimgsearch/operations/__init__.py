"""Work on a database that serves: filling a model from stored files, and switching to it."""
