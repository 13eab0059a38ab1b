"""The door for Postgres: password by SCRAM, TLS where it is set up, and questions as JSON in simple queries.

Each answer is a row of text.
"""

import asyncio
import json
import re
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from pgimgsearch.embeddings.binary_copy import literal
from pgimgsearch.server import pg_protocol as protocol
from pgimgsearch.server import requests as questions
from pgimgsearch.server import scram
from pgimgsearch.server.budget import ByteBudget, Places, check_structure
from pgimgsearch.server.errors import Busy, refusal_of
from pgimgsearch.server.service import LARGEST_PICTURE, Service

USER = "pgimgsearch"
PARAMETERS = {"server_version": "15.0", "server_encoding": "UTF8", "client_encoding": "UTF8", "DateStyle": "ISO, MDY",
              "integer_datetimes": "on", "standard_conforming_strings": "on"}  # fmt: skip
LARGEST_MESSAGE = LARGEST_PICTURE * 4 // 3 + (1 << 20)  # an image in base64, and what is around it
LARGEST_BEFORE_LOGIN = 10_000
MOST_IN_VAIN = 1000  # messages in a row that ask nothing
SMALL_MESSAGE = 1 << 16  # for which no budget is asked
WAITING_BYTES = 128 << 20  # of large messages that are received or worked on
SECONDS_TO_LOG_IN = 10
SECONDS_TO_CLOSE = 5
SECONDS_A_MESSAGE = 60  # from its first byte to its last
SECONDS_TO_ANSWER = 30  # when the embedder ends
SECONDS_BETWEEN_LOOKS = 0.1  # whether a client that waits for an answer is still there
MOST_LOGGING_IN, MOST_CONNECTIONS = 500, 1000
# Encodings of Postgres -> of Python: those that are read and written in one pass over the text
ENCODINGS = {
    "UTF8": "utf-8", "UNICODE": "utf-8", "SQLASCII": "utf-8", "EUCJP": "euc_jp", "EUCKR": "euc_kr", "EUCCN": "gb2312",
    "SJIS": "shift_jis", "GBK": "gbk", "GB18030": "gb18030", "BIG5": "big5", "UHC": "cp949", "JOHAB": "johab",
    "EUCJIS2004": "euc_jis_2004", "SHIFTJIS2004": "shift_jis_2004", "KOI8R": "koi8_r", "KOI8U": "koi8_u",
    "WIN866": "cp866", "WIN874": "cp874",
    **{f"WIN125{n}": f"cp125{n}" for n in range(9)}, **{f"ISO8859{n}": f"iso8859_{n}" for n in range(5, 9)},
    **{f"LATIN{n}": f"iso8859_{part}" for n, part in enumerate((1, 2, 3, 4, 9, 10, 13, 14, 15, 16), 1)},
}  # fmt: skip
LONGEST_SETTING = 200  # characters; of more the pattern would take seconds
SET_ENCODING = re.compile(r"\s*set\s+client_encoding\s*(?:to|=)\s*'?([\w-]+)'?\s*;?\s*", re.IGNORECASE)


class PgServer:
    """Serves connections that present the password; ``tls`` offers encryption to those that ask for it."""

    def __init__(self, service: Service, password: str, tls: ssl.SSLContext | None) -> None:
        self._service, self._tls = service, tls
        self._verifier = scram.verifier_of(password)
        self._open: set[asyncio.Task[Any]] = set()
        self._idle: set[asyncio.Task[Any]] = set()  # of these, those that wait for a message
        self._logging_in = Places[asyncio.Task[Any]](MOST_LOGGING_IN, _hang_up)
        self._resting = Places[asyncio.Task[Any]](MOST_CONNECTIONS, _hang_up)
        self._bytes = ByteBudget(WAITING_BYTES)
        self._leaving = False

    async def start(self, bound: socket.socket) -> asyncio.Server:
        """Listen on a socket."""
        return await asyncio.start_server(self._serve, sock=bound)

    async def hang_up(self) -> None:
        """End every connection; those that wait for an answer get it first."""
        self._leaving = True
        for task in self._idle:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=SECONDS_TO_ANSWER)
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self._idle.add(task)
        self._logging_in.enter(task)
        try:
            async with asyncio.timeout(SECONDS_TO_LOG_IN):
                welcome = await self._log_in(reader, writer, lambda: self._logging_in.enter(task))
            self._logging_in.leave(task)
            if welcome:
                await self._answer_queries(reader, writer, task)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, ssl.SSLError, struct.error):
            pass  # it left, or it does not speak the protocol
        except asyncio.CancelledError:
            pass  # we hang up
        finally:
            self._idle.discard(task)
            self._logging_in.leave(task)
            self._resting.leave(task)
            writer.close()
            try:
                async with asyncio.timeout(SECONDS_TO_CLOSE):
                    await writer.wait_closed()
            except (OSError, asyncio.CancelledError):  # it does not read what was written
                writer.transport.abort()
            self._open.discard(task)

    async def _log_in(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, progress: Callable[[], None]
    ) -> bool:  # fmt: skip
        """Whether the client knows the password; who makes progress gives way after those who make none."""
        encrypted, asked = False, set[int]()
        while True:
            code, body = await _read_startup(reader)
            progress()
            if code not in {protocol.SSL_REQUEST, protocol.GSS_REQUEST}:
                break
            if code in asked or encrypted:
                return False
            asked.add(code)
            offered = code == protocol.SSL_REQUEST and self._tls is not None
            writer.write(b"S" if offered else b"N")
            await writer.drain()
            if offered and self._tls is not None:
                if reader._buffer:  # type: ignore[attr-defined]  # sent before, so by whom is not known
                    return False
                await writer.start_tls(self._tls)
                encrypted = True
        if code >> 16 != protocol.PROTOCOL_3:  # a request to cancel, or another protocol
            return False
        if self._tls is not None and not encrypted:
            writer.write(protocol.error("28000", "this server takes encrypted connections alone",
                                        "connect with sslmode=verify-full", "FATAL"))  # fmt: skip
            await writer.drain()
            return False
        user = protocol.startup_parameters(body).get("user", "")
        if not await self._authenticate(reader, writer, user):
            writer.write(protocol.error("28P01", f'password authentication failed for user "{user}"', None, "FATAL"))
            await writer.drain()
            return False
        writer.write(protocol.greeting(PARAMETERS))
        await writer.drain()
        return True

    async def _authenticate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str) -> bool:
        """SASL as Postgres wraps it: mechanism and first message, challenge, last message, proof."""
        exchange = scram.Exchange(self._verifier)
        writer.write(protocol.authentication(protocol.AUTH_SASL, protocol.text(scram.MECHANISM) + b"\0"))
        kind, first = await _read_message(reader, LARGEST_BEFORE_LOGIN)
        mechanism, _, rest = first.partition(b"\0")
        try:
            if kind != b"p" or mechanism != scram.MECHANISM.encode():
                raise scram.Refused("another mechanism")
            challenge = exchange.challenge(rest[4:].decode())
            writer.write(protocol.authentication(protocol.AUTH_SASL_CONTINUE, challenge.encode()))
            kind, final = await _read_message(reader, LARGEST_BEFORE_LOGIN)
            proof = exchange.prove(final.decode())
        except (scram.Refused, UnicodeDecodeError):
            return False
        if kind != b"p" or user != USER:
            return False
        writer.write(protocol.authentication(protocol.AUTH_SASL_FINAL, proof.encode()))
        return True

    async def _answer_queries(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[Any]
    ) -> None:  # fmt: skip
        encoding: str | None = "utf-8"
        skipping, in_vain = False, 0
        while not self._leaving and in_vain < MOST_IN_VAIN:
            await asyncio.sleep(0)  # what has arrived is read without waiting, and others come in between
            self._idle.add(task)
            self._resting.enter(task)
            kind = await reader.readexactly(1)
            self._resting.leave(task)
            with self._bytes.share() as take:
                try:
                    body = await _read_body(reader, LARGEST_MESSAGE, take)
                except Busy as busy:  # what is left of the message is not read, so the connection ends
                    writer.write(protocol.error(busy.sqlstate, str(busy), busy.hint, "FATAL"))
                    return
                self._idle.discard(task)
                if kind == b"X":
                    return
                in_vain = 0 if kind == b"Q" else in_vain + 1
                if kind == b"S":
                    skipping = False
                    writer.write(protocol.ready())
                elif kind != b"Q":  # the extended protocol: refused once, until its sync
                    if not skipping:
                        writer.write(protocol.error("0A000", "only simple queries are understood", None))
                    skipping = True
                else:
                    query = body.rstrip(b"\0").decode(encoding or "ascii", "replace")
                    wanted = SET_ENCODING.fullmatch(query) if len(query) <= LONGEST_SETTING else None
                    if wanted is not None:
                        encoding = ENCODINGS.get(re.sub("[-_]", "", wanted[1]).upper())
                        answer = protocol.completed("SET")
                    elif encoding is not None:
                        answer = await _while_there(reader, writer, self._answer(query, encoding, task))
                    if encoding is None:  # nor is what follows read, as it would be read wrongly
                        answer = protocol.error("22023", "the client_encoding is not known", "use UTF8")
                    writer.write(answer + protocol.ready())
            async with asyncio.timeout(SECONDS_A_MESSAGE):  # for one that does not read
                await writer.drain()

    async def _answer(self, query: str, encoding: str, client: asyncio.Task[Any]) -> bytes:
        kind = "unknown"
        try:
            check_structure(query)
            asked = (
                await asyncio.to_thread(questions.parse, query)
                if len(query) > SMALL_MESSAGE
                else questions.parse(query)
            )
            kind = asked.ask
            answers = await self._ask(asked, client)
        except Exception as error:  # a question must not end the connection
            said = refusal_of(error)
            self._service.metrics.count("postgres", kind, said.sqlstate)
            return protocol.error(said.sqlstate, str(said), said.hint, encoding=encoding)
        self._service.metrics.count("postgres", kind, "ok")
        return protocol.column("answer", answers, f"SELECT {len(answers)}", encoding)

    async def _ask(self, asked: questions.Question, client: asyncio.Task[Any]) -> list[str]:
        if isinstance(asked, questions.StatusRequest):
            return [json.dumps({"model": name, "fingerprint": model.stored.fingerprint, "device": model.encoder.device})
                    for name, model in self._service.models.items()]  # fmt: skip
        model = self._service.find(asked.model, asked.fingerprint)
        if isinstance(asked, questions.TextRequest):
            vectors = await self._service.embed_texts(model, asked.texts, asked.template, client)
            cut = await self._service.cut_texts(model, asked.texts, asked.template)
            return [*map(literal, vectors), *(one.said_of(model.stored.name) for one in cut)]
        vector = await self._service.embed_picture(model, asked.bytes, asked.crop, client=client)
        return [literal(vector, model.stored.storage)]


def _hang_up(task: asyncio.Task[Any]) -> None:
    task.cancel()


async def _while_there(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, work: Coroutine[Any, Any, bytes]
) -> bytes:
    """The result of work for a client; raises ConnectionError, and cancels the work, where the client leaves before."""
    working = asyncio.ensure_future(work)
    try:
        while not working.done():
            await asyncio.wait({working}, timeout=SECONDS_BETWEEN_LOOKS)
            if not working.done() and (reader.at_eof() or reader.exception() or writer.is_closing()):
                raise ConnectionError("the client left")
        return working.result()
    finally:
        working.cancel()
        del working  # its error knows this frame


async def _read_startup(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    length, code = struct.unpack("!ii", await reader.readexactly(8))
    if not 8 <= length <= LARGEST_BEFORE_LOGIN:
        raise struct.error(f"a startup message of {length} bytes")
    return code, await reader.readexactly(length - 8)


async def _read_message(reader: asyncio.StreamReader, largest: int) -> tuple[bytes, bytes]:
    """A message before the login, which has a time limit as a whole."""
    kind = await reader.readexactly(1)
    return kind, await _read_body(reader, largest, lambda _: None)


async def _read_body(reader: asyncio.StreamReader, largest: int, take: Callable[[int], None]) -> bytes:
    """The rest of a message; takes of the budget what has arrived of a large one. Raises Busy or TimeoutError."""
    async with asyncio.timeout(SECONDS_A_MESSAGE):
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        if not 4 <= length <= largest:
            raise struct.error(f"a message of {length} bytes")
        if length <= SMALL_MESSAGE:
            return await reader.readexactly(length - 4)
        body = bytearray()
        while left := length - 4 - len(body):
            part = await reader.read(min(left, SMALL_MESSAGE))
            if not part:
                raise asyncio.IncompleteReadError(b"", left)
            take(len(part))
            body += part
        return bytes(body)
