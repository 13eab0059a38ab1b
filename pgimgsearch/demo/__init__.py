"""The demo: the main job, offline and without torch."""
