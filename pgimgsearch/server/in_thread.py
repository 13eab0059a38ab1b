"""An embedder on a thread of this process, on a port of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pgimgsearch.server.bound import bound
from pgimgsearch.server.pg_server import PgServer

SECONDS_TO_END = 30


@contextmanager
def in_thread(server: PgServer) -> Iterator[int]:
    """Serve Postgres on 127.0.0.1 for the time of the block; yields the port."""
    loop = asyncio.new_event_loop()
    place = bound("127.0.0.1", 0)
    port: int = place.getsockname()[1]
    listening = loop.run_until_complete(server.start(place))
    thread = threading.Thread(target=loop.run_forever, name="embedder")
    thread.start()

    async def stop() -> None:
        listening.close()
        await server.hang_up()

    try:
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(SECONDS_TO_END)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
