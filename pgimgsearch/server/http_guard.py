"""What every request over HTTP passes: places and time for its head, the password, and bounds for its body."""

import asyncio
import secrets
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pgimgsearch.server.budget import ByteBudget, Places, Structure
from pgimgsearch.server.errors import Refusal, TooLarge, Unauthorized, json_answer

OPEN_PATHS = {"/health", "/metrics", "/docs", "/openapi.json"}
UPLOADS = {"/embed/image", "/jobs"}
LARGEST_UPLOAD, LARGEST_JSON = 512 << 20, 16 << 20  # bytes of a body
UPLOAD_BYTES, JSON_BYTES = 2 << 30, 64 << 20  # of all bodies at once: uploads lie on disk, and JSON in memory
PART, SMALL_PART = 1 << 16, 1 << 10  # bytes that are parsed at once, of bodies of known length and of others
MOST_WAITING = 500  # connections that have sent no whole head of a request
SECONDS_FOR_HEAD, SECONDS_FOR_PART, SECONDS_FOR_BODY = 10, 20, 600

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def guarded_protocol(tls: ssl.SSLContext | None) -> type[H11Protocol]:
    """A protocol for one server: connections without a request give way to newer ones, and have little time.

    Its TLS begins here, and not where the server accepts, so that half a handshake is such a connection as well.
    """
    places = Places["Guarded"](MOST_WAITING, lambda one: one.abort())

    class Guarded(H11Protocol):
        _accepted: asyncio.Transport | None = None
        _timer: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None  # when it is looked whether the client reads what was written
        _handshake: asyncio.Task[None] | None = None

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._arrived, self._feeding = bytearray(), False

        def connection_made(self, transport: Any) -> None:
            self._accepted = transport
            self._wait()
            if tls is None:
                super().connection_made(transport)
            else:
                transport.pause_reading()
                self._handshake = self.loop.create_task(self._encrypt(transport, tls))

        async def _encrypt(self, transport: Any, tls: ssl.SSLContext) -> None:
            with suppress(OSError):  # it left, gave way, or does not speak TLS
                encrypted = await self.loop.start_tls(transport, self, tls, server_side=True)
                if encrypted is not None and not encrypted.is_closing():
                    super().connection_made(encrypted)
                    if self._arrived:
                        self._feed()
                    return
            self._work()
            transport.abort()

        def data_received(self, data: bytes) -> None:
            """Parse a part at a time, as tiny chunks make much work of few bytes; others come in between."""
            self._arrived += data
            if not self._feeding and self.transport is not None:  # else it came with the end of the handshake
                self._feed()

        def _feed(self) -> None:
            is_plain = self.headers is not None and b"transfer-encoding" not in dict(self.headers)
            part = bytes(self._arrived[: PART if is_plain else SMALL_PART])
            del self._arrived[: len(part)]
            super().data_received(part)
            self._feeding = bool(self._arrived) and not self.transport.is_closing()
            if self._feeding:
                self.transport.pause_reading()
                self.loop.call_soon(self._feed)
            elif not self.transport.is_closing() and not self.flow.read_paused:
                self.transport.resume_reading()

        def connection_lost(self, exc: Exception | None) -> None:
            self._work()
            if self._unread is not None:
                self._unread.cancel()
            if self.transport is not None:
                super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_reading(None)

        def _watch_reading(self, before: int | None) -> None:
            """Hang up on a client that has read nothing since the last look, while there is something to read."""
            left = self.transport.get_write_buffer_size()
            if self._unread is not None:
                self._unread.cancel()
            if before is not None and left >= before > 0:
                self.abort()
            elif left:
                self._unread = self.loop.call_later(SECONDS_FOR_PART, self._watch_reading, left)

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                super().send_400_response(msg)
                self._watch_reading(None)
            else:
                self.abort()

        def abort(self) -> None:
            assert self._accepted is not None, "a connection was made"
            self._accepted.abort()

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self._work()

        def on_response_complete(self) -> None:
            super().on_response_complete()  # which begins the next request, where that came with the last
            if self.transport.is_closing():
                self._watch_reading(None)
            elif self.cycle.response_complete:
                self._wait()

        def _wait(self) -> None:
            self._work()
            self._timer = self.loop.call_later(SECONDS_FOR_HEAD, self.abort)
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
        self._uploads, self._json = ByteBudget(UPLOAD_BYTES), ByteBudget(JSON_BYTES)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check(scope["path"], headers)
            budget = self._uploads if scope["path"] in UPLOADS else self._json
            with budget.share() as take:
                await _bounded(self._app, scope, receive, send, _largest(scope["path"]), take)
        except Refusal as refusal:
            answer = json_answer(refusal)
            answer.headers["Connection"] = "close"  # what is left of its body is not read
            await answer(scope, receive, send)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if path not in OPEN_PATHS and not (
            scheme.lower() == b"bearer" and secrets.compare_digest(token, self._password)
        ):
            raise Unauthorized("the bearer token is missing or wrong", hint="send the embedder's password")
        if path in OPEN_PATHS and (b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"):
            raise Refusal("this path takes no body", hint="ask for it without one")
        kind = headers.get(b"content-type", b"").lower()
        if b"charset" in kind and b"utf-8" not in kind:
            raise Refusal("requests are in UTF-8", hint="leave the charset out")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > _largest(path):
            raise _too_large(_largest(path))


def _largest(path: str) -> int:
    return LARGEST_UPLOAD if path in UPLOADS else LARGEST_JSON


def _too_large(most: int) -> TooLarge:
    return TooLarge("the request is too large", hint=f"send at most {most >> 20} MB at once")


async def _bounded(
    app: App, scope: Message, receive: Receive, send: Send, most: int, take: Callable[[int], None]
) -> None:  # fmt: skip
    """Run an application on a body of so many bytes, which it takes of a budget; it ends when the client leaves."""
    read, structure, problem, is_sent = 0, Structure(), list[Refusal](), False
    complete, end = asyncio.Event(), asyncio.get_running_loop().time() + SECONDS_FOR_BODY

    async def limited() -> Message:
        nonlocal read
        if complete.is_set():
            return await receive()
        try:
            async with asyncio.timeout(min(SECONDS_FOR_PART, end - asyncio.get_running_loop().time())):
                message = await receive()
        except TimeoutError:
            problem.append(Refusal("the rest of the request did not arrive", hint="send it again"))
            raise problem[0] from None
        size = len(message.get("body", b""))
        read += size
        try:
            if read > most:
                raise _too_large(most)
            take(size)
            if most == LARGEST_JSON:
                structure.add(message.get("body", b""))
        except Refusal as refusal:
            problem.append(refusal)
            raise
        if not message.get("more_body", False):
            complete.set()
        return message

    async def unless_refused(message: Message) -> None:
        nonlocal is_sent
        if not problem:  # the application takes it for a body that cannot be parsed
            await send(message)
            is_sent = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def leaving() -> None:
        await complete.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(app(scope, limited, unless_refused))
    left = asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        if is_sent:  # it may still close files
            await asyncio.wait({working}, timeout=SECONDS_FOR_PART)
        if working.done() and not problem:
            working.result()
    finally:
        for task in (working, left):
            task.cancel()
        await asyncio.gather(working, left, return_exceptions=True)
    if problem:
        raise problem[0]
