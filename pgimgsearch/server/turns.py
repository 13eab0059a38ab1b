"""Threads that many clients share: who waits is served in turns, each once, however much one of them asks for."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Turns:
    """A pool of ``workers`` threads for one event loop."""

    def __init__(self, workers: int, name: str, prepare: Callable[[], None] | None = None) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=prepare)
        self._free = workers
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # who was served last comes last

    async def run(self, client: Hashable, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call in a thread when it is the client's turn. A call that runs keeps its thread when nobody waits for it."""
        loop = asyncio.get_running_loop()
        await self._turn(client)
        try:
            running = self._threads.submit(work, *args, **kwargs)
        except RuntimeError:  # it is closed
            self._pass_on()
            raise

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended before
                loop.call_soon_threadsafe(self._pass_on)

        running.add_done_callback(ended)
        del args, kwargs
        try:
            return await asyncio.wrap_future(running)
        finally:
            del running  # its error knows this frame, and through it all that the frames above hold

    def close(self) -> None:
        """Wait for what runs."""
        self._threads.shutdown()

    async def _turn(self, client: Hashable) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            elif (queue := self._waiting.get(client)) is not None and turn in queue:
                queue.remove(turn)
                if not queue:
                    del self._waiting[client]
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            client, queue = next(iter(self._waiting.items()))
            del self._waiting[client]
            turn = queue.popleft()
            if queue:
                self._waiting[client] = queue
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
