"""Models: what they are called, how they are loaded, and pictures and texts into vectors."""
