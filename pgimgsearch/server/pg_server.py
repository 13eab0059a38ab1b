"""The door for Postgres: password by SCRAM, TLS where it is set up, and questions as JSON in simple queries.

Each answer is a row of text.
"""

import asyncio
import codecs
import json
import re
import socket
import ssl
import struct
from contextlib import suppress
from typing import Any

from pgimgsearch.embeddings.binary_copy import literal
from pgimgsearch.server import pg_protocol as protocol
from pgimgsearch.server import requests as questions
from pgimgsearch.server import scram
from pgimgsearch.server.errors import refusal_of
from pgimgsearch.server.service import LARGEST_PICTURE, Service

USER = "pgimgsearch"
PARAMETERS = {"server_version": "15.0", "server_encoding": "UTF8", "client_encoding": "UTF8", "DateStyle": "ISO, MDY",
              "integer_datetimes": "on", "standard_conforming_strings": "on"}  # fmt: skip
LARGEST_MESSAGE = LARGEST_PICTURE * 4 // 3 + (1 << 20)  # an image in base64, and what is around it
LARGEST_BEFORE_LOGIN = 10_000
SECONDS_TO_LOG_IN = 10
SECONDS_TO_ANSWER = 30  # when the embedder ends
MOST_CONNECTIONS = 1000
SET_ENCODING = re.compile(r"\s*set\s+client_encoding\s*(?:to|=)\s*'?([\w-]+)'?\s*;?\s*", re.IGNORECASE)


class PgServer:
    """Serves connections that present the password; ``tls`` offers encryption to those that ask for it."""

    def __init__(self, service: Service, password: str, tls: ssl.SSLContext | None) -> None:
        self._service, self._tls = service, tls
        self._verifier = scram.verifier_of(password)
        self._open: set[asyncio.Task[Any]] = set()
        self._idle: set[asyncio.Task[Any]] = set()  # of these, those that wait for a message
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
        try:
            if len(self._open) > MOST_CONNECTIONS:
                writer.write(protocol.error("53300", "too many connections", None, "FATAL"))
                return
            async with asyncio.timeout(SECONDS_TO_LOG_IN):
                welcome = await self._log_in(reader, writer)
            if welcome:
                await self._answer_queries(reader, writer, task)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, ssl.SSLError, struct.error):
            pass  # it left, or it does not speak the protocol
        except asyncio.CancelledError:
            pass  # we hang up
        finally:
            self._open.discard(task)
            self._idle.discard(task)
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            code, body = await _read_startup(reader)
            if code == protocol.SSL_REQUEST:
                writer.write(b"S" if self._tls else b"N")
                await writer.drain()
                if self._tls:
                    await writer.start_tls(self._tls)
            elif code == protocol.GSS_REQUEST:
                writer.write(b"N")
            else:
                break
        if code >> 16 != protocol.PROTOCOL_3:  # a request to cancel, or another protocol
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
        encoding, skipping = "utf-8", False
        while not self._leaving:
            self._idle.add(task)
            kind, body = await _read_message(reader, LARGEST_MESSAGE)
            self._idle.discard(task)
            if kind == b"X":
                return
            if kind == b"S":
                skipping = False
                writer.write(protocol.ready())
            elif kind != b"Q":  # the extended protocol: refused once, until its sync
                if not skipping:
                    writer.write(protocol.error("0A000", "only simple queries are understood", None))
                skipping = True
            else:
                query = body.rstrip(b"\0").decode(encoding, "replace")
                if (wanted := SET_ENCODING.fullmatch(query)) is not None:
                    encoding = _codec(wanted[1])
                    writer.write(protocol.completed("SET") + protocol.ready())
                else:
                    writer.write(await self._answer(query, encoding) + protocol.ready())
            await writer.drain()

    async def _answer(self, query: str, encoding: str) -> bytes:
        kind = "unknown"
        try:
            asked = questions.parse(query)
            kind = asked.ask
            answers = await self._ask(asked)
        except Exception as error:  # a question must not end the connection
            said = refusal_of(error)
            self._service.metrics.count("postgres", kind, said.sqlstate)
            return protocol.error(said.sqlstate, str(said), said.hint, encoding=encoding)
        self._service.metrics.count("postgres", kind, "ok")
        return protocol.column("answer", answers, f"SELECT {len(answers)}", encoding)

    async def _ask(self, asked: questions.Question) -> list[str]:
        if isinstance(asked, questions.StatusRequest):
            return [json.dumps({"model": name, "fingerprint": model.stored.fingerprint, "device": model.encoder.device})
                    for name, model in self._service.models.items()]  # fmt: skip
        model = self._service.find(asked.model, asked.fingerprint)
        if isinstance(asked, questions.TextRequest):
            return [literal(vector) for vector in await self._service.embed_texts(model, asked.texts, asked.template)]
        vector = await self._service.embed_picture(model, asked.bytes, asked.crop)
        return [literal(vector, model.stored.storage)]


def _codec(name: str) -> str:
    """Python's name of a client encoding of Postgres; UTF-8 for those it does not have."""
    try:
        return codecs.lookup(re.sub(r"(?i)^win", "cp", name)).name
    except LookupError:
        return "utf-8"


async def _read_startup(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    length, code = struct.unpack("!ii", await reader.readexactly(8))
    if not 8 <= length <= LARGEST_BEFORE_LOGIN:
        raise struct.error(f"a startup message of {length} bytes")
    return code, await reader.readexactly(length - 8)


async def _read_message(reader: asyncio.StreamReader, largest: int) -> tuple[bytes, bytes]:
    kind = await reader.readexactly(1)
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    if not 4 <= length <= largest:
        raise struct.error(f"a message of {length} bytes")
    return kind, await reader.readexactly(length - 4)
