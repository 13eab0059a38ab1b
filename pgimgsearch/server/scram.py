"""The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), as Postgres clients speak it: without channel binding.

libpq leaves the user name empty here, since the startup message has it; the libraries for Python refuse that.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass

MECHANISM = "SCRAM-SHA-256"
ITERATIONS = 4096  # Postgres' own


class Refused(Exception):  # noqa: N818
    """The client does not know the password, or does not speak SCRAM."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a server keeps of a password."""

    salt: bytes
    stored_key: bytes
    server_key: bytes


def verifier_of(password: str) -> Verifier:
    """Salt and hash a password."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    return Verifier(salt, hashlib.sha256(_hmac(salted, b"Client Key")).digest(), _hmac(salted, b"Server Key"))


class Exchange:
    """One login: the client's first message is answered by a challenge, its last by our own proof."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def challenge(self, client_first: str) -> str:
        """Salt, iterations and a nonce. Raises Refused for a client that asks for channel binding."""
        flag, _, rest = client_first.partition(",")
        _, _, self._bare = rest.partition(",")
        fields = _fields(self._bare)
        if flag not in {"n", "y"} or not fields.get("r"):
            raise Refused("channel binding is not offered")
        self._header = client_first[: len(client_first) - len(self._bare)]
        self._nonce = fields["r"] + secrets.token_urlsafe(18)
        salt = base64.b64encode(self._verifier.salt).decode()
        self._first = f"r={self._nonce},s={salt},i={ITERATIONS}"
        return self._first

    def prove(self, client_final: str) -> str:
        """Check the client's proof and give ours. Raises Refused."""
        unproven, _, proof = client_final.rpartition(",p=")
        fields = _fields(unproven)
        if fields.get("r") != self._nonce or fields.get("c") != base64.b64encode(self._header.encode()).decode():
            raise Refused("the client answers another exchange")
        said = f"{self._bare},{self._first},{unproven}".encode()
        signature = _hmac(self._verifier.stored_key, said)
        try:
            given = base64.b64decode(proof, validate=True)
            key = bytes(a ^ b for a, b in zip(given, signature, strict=True))
        except ValueError as error:
            raise Refused("the proof is malformed") from error
        if not hmac.compare_digest(hashlib.sha256(key).digest(), self._verifier.stored_key):
            raise Refused("the password is wrong")
        return "v=" + base64.b64encode(_hmac(self._verifier.server_key, said)).decode()


def _hmac(key: bytes, said: bytes) -> bytes:
    return hmac.digest(key, said, "sha256")


def _fields(text: str) -> dict[str, str]:
    return {part[0]: part[2:] for part in text.split(",") if part[1:2] == "="}
