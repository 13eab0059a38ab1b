"""One small file a backend: only what differs between them."""
