"""What every request over HTTP passes: places and time for its head, the password, and bounds for its body."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from pgimgsearch.server.budget import Places
from pgimgsearch.server.errors import Refusal, TooLarge, Unauthorized, json_answer

OPEN_PATHS = {"/health", "/metrics", "/docs", "/openapi.json"}
UPLOADS = {"/embed/image", "/jobs"}
LARGEST_UPLOAD, LARGEST_JSON = 512 << 20, 16 << 20  # bytes of a body
MOST_WAITING = 500  # connections that have sent no whole head of a request
SECONDS_FOR_HEAD, SECONDS_FOR_PART = 10, 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def guarded_protocol() -> type[H11Protocol]:
    """A protocol for one server: connections without a request give way to newer ones, and have little time."""
    places = Places[H11Protocol](MOST_WAITING, lambda one: one.transport.abort())

    class Guarded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._work()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self._work()

        def on_response_complete(self) -> None:
            super().on_response_complete()  # which begins the next request, where that came with the last
            if not self.transport.is_closing() and self.cycle.response_complete:
                self._wait()

        def _wait(self) -> None:
            self._work()
            self._timer = self.loop.call_later(SECONDS_FOR_HEAD, self.transport.abort)
            places.enter(self)

        def _work(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
            places.leave(self)

    return Guarded


class Guard:
    """Middleware that refuses before it reads, counts what it reads, and ends work for a client that left."""

    def __init__(self, app: App, password: str) -> None:
        self._app, self._password = app, password.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check(scope["path"], headers)
            await _bounded(self._app, scope, receive, send, _largest(scope["path"]))
        except Refusal as refusal:
            await json_answer(refusal)(scope, receive, send)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if path not in OPEN_PATHS and not (
            scheme.lower() == b"bearer" and secrets.compare_digest(token, self._password)
        ):
            raise Unauthorized("the bearer token is missing or wrong", hint="send the embedder's password")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > _largest(path):
            raise _too_large(_largest(path))


def _largest(path: str) -> int:
    return LARGEST_UPLOAD if path in UPLOADS else LARGEST_JSON


def _too_large(most: int) -> TooLarge:
    return TooLarge("the request is too large", hint=f"send at most {most >> 20} MB at once")


async def _bounded(app: App, scope: Message, receive: Receive, send: Send, most: int) -> None:
    """Run an application on a body of so many bytes; it ends when the client leaves."""
    read, problem = 0, list[Refusal]()
    complete = asyncio.Event()

    async def limited() -> Message:
        nonlocal read
        if complete.is_set():
            return await receive()
        try:
            async with asyncio.timeout(SECONDS_FOR_PART):
                message = await receive()
        except TimeoutError:
            problem.append(Refusal("the rest of the request did not arrive", hint="send it again"))
            raise problem[0] from None
        read += len(message.get("body", b""))
        if read > most:
            problem.append(_too_large(most))
            raise problem[0]
        if not message.get("more_body", False):
            complete.set()
        return message

    async def unless_refused(message: Message) -> None:
        if not problem:  # the application takes it for a body that cannot be parsed
            await send(message)

    async def leaving() -> None:
        await complete.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(app(scope, limited, unless_refused))
    left = asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        if working.done() and not problem:
            working.result()
    finally:
        for task in (working, left):
            task.cancel()
        await asyncio.gather(working, left, return_exceptions=True)
    if problem:
        raise problem[0]
