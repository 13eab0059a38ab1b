"""Sockets to listen on."""

import socket

from pgimgsearch.errors import UsageError


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens; raises UsageError where it cannot."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # its connections inherit it; asyncio sets it for sockets of its own alone
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="choose others with --host, --port and --http-port",
        ) from error
