"""A small pooler for the Postgres protocol, as PgBouncer works in transaction and in session mode."""

import os
import queue
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import parse_qs, urlsplit

Mode = Literal["transaction", "session"]
TIMEOUT = 10  # seconds for a client to end


@contextmanager
def pooler(url: str, mode: Mode, size: int = 3) -> Iterator[str]:
    """Pool the connections to a database of the tests' server; yields the URL of the pooler."""
    parts = urlsplit(url)
    user, database, place = parts.username or "", parts.path.lstrip("/"), parse_qs(parts.query)["host"][0]
    servers: queue.LifoQueue[socket.socket] = queue.LifoQueue()  # the one that was used last is used again
    greetings = [_open(servers, place, user, database) for _ in range(size)]
    listening = socket.create_server(("127.0.0.1", 0))
    serving: list[tuple[socket.socket, threading.Thread]] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                thread = threading.Thread(target=_serve, args=(client, servers, greetings[0], mode), daemon=True)
                thread.start()
                serving.append((client, thread))

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"postgresql://{user}@127.0.0.1:{listening.getsockname()[1]}/{database}"
    finally:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)  # else accept() waits on
        listening.close()
        accepting.join(TIMEOUT)
        for client, thread in serving:  # each gives its connection back, before the test's database is dropped
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT)
        while not servers.empty():
            servers.get().close()


def _open(servers: "queue.LifoQueue[socket.socket]", place: str, user: str, database: str) -> bytes:
    """A connection for the pool, and what the server said of its parameters."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{place}/.s.PGSQL.5432")
    body = struct.pack("!i", 3 << 16) + f"user\0{user}\0database\0{database}\0\0".encode()
    server.sendall(struct.pack("!i", len(body) + 4) + body)
    parameters = b""
    while (message := _read(server))[:1] != b"Z":
        parameters += message if message[:1] == b"S" else b""
    servers.put(server)
    return parameters


def _serve(client: socket.socket, servers: "queue.LifoQueue[socket.socket]", parameters: bytes, mode: Mode) -> None:
    """One client; its key for cancelling is not that of the process that works for it, as with every pooler."""
    server: socket.socket | None = None
    with client, suppress(OSError, EOFError):
        while struct.unpack("!ii", _exactly(client, 8))[1] != 3 << 16:
            client.sendall(b"N")
        client.recv(1 << 16)  # user and database
        key = b"K" + struct.pack("!i", 12) + os.urandom(8)
        client.sendall(b"R" + struct.pack("!ii", 8, 0) + parameters + key + b"Z" + struct.pack("!ic", 5, b"I"))
        while True:
            ready, _, _ = select.select([one for one in (client, server) if one is not None], [], [])
            if client in ready:
                message = _read(client)
                if message[:1] == b"X":
                    break
                server = server or servers.get()
                server.sendall(message)
            elif server is not None:
                message = _read(server)
                client.sendall(message)
                if mode == "transaction" and message[:1] == b"Z" and message[5:] == b"I":
                    servers.put(server)
                    server = None
    if server is not None:
        for query in (b"rollback\0", b"discard all\0"):
            server.sendall(b"Q" + struct.pack("!i", len(query) + 4) + query)
            while _read(server)[:1] != b"Z":
                pass
        servers.put(server)


def _read(connection: socket.socket) -> bytes:
    head = _exactly(connection, 5)
    return head + _exactly(connection, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
