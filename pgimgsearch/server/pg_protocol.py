"""Messages of the Postgres wire protocol, version 3, as far as a server of simple queries needs them.

The source is chapter "Frontend/Backend Protocol" of the PostgreSQL documentation.
"""

import struct
from collections.abc import Mapping, Sequence

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST, PROTOCOL_3 = 80877103, 80877104, 80877102, 3
TEXT_OID = 25
AUTH_OK, AUTH_SASL, AUTH_SASL_CONTINUE, AUTH_SASL_FINAL = 0, 10, 11, 12


def message(kind: bytes, body: bytes = b"") -> bytes:
    """A message: its kind, its length and its body."""
    return kind + struct.pack("!i", len(body) + 4) + body


def text(value: str, encoding: str = "utf-8") -> bytes:
    """A string that ends with a zero; what the encoding lacks becomes a question mark."""
    return value.replace("\0", "?").encode(encoding, "replace") + b"\0"


def authentication(code: int, body: bytes = b"") -> bytes:
    """A step of the authentication."""
    return message(b"R", struct.pack("!i", code) + body)


def ready() -> bytes:
    """Ready for a query, outside a transaction."""
    return message(b"Z", b"I")


def greeting(parameters: Mapping[str, str]) -> bytes:
    """What follows a successful authentication."""
    told = b"".join(message(b"S", text(key) + text(value)) for key, value in parameters.items())
    return authentication(AUTH_OK) + told + message(b"K", struct.pack("!ii", 0, 0)) + ready()


def column(name: str, values: Sequence[str], tag: str, encoding: str = "utf-8") -> bytes:
    """A result of one column of text."""
    described = struct.pack("!h", 1) + text(name) + struct.pack("!ihihih", 0, 0, TEXT_OID, -1, -1, 0)
    rows = []
    for value in values:
        data = value.encode(encoding, "replace")
        rows.append(message(b"D", struct.pack("!hi", 1, len(data)) + data))
    return message(b"T", described) + b"".join(rows) + completed(tag)


def completed(tag: str) -> bytes:
    """The end of a statement."""
    return message(b"C", text(tag))


def error(sqlstate: str, said: str, hint: str | None, severity: str = "ERROR", encoding: str = "utf-8") -> bytes:
    """An error, as Postgres clients show it."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": said} | ({"H": hint} if hint else {})
    return message(b"E", b"".join(key.encode() + text(value, encoding) for key, value in fields.items()) + b"\0")


def startup_parameters(body: bytes) -> dict[str, str]:
    """User, database and settings of a startup message."""
    parts = body.split(b"\0")
    return {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in zip(parts[::2], parts[1::2], strict=False)
        if key
    }
