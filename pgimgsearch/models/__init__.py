"""Models: what they are called, how they are loaded, and images and texts into vectors."""
