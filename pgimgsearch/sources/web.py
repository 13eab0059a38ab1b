"""Files of the web: no private addresses unless they are allowed, at every redirect, and a deadline for all of it."""

import http.client
import ipaddress
import os
import socket
import ssl
import time
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit, urlunsplit

from pgimgsearch.settings import ALLOW_PRIVATE
from pgimgsearch.sources.locations import ForbiddenLocation, check_location

TIMEOUT = 30.0  # without a byte
DEADLINE = 300.0  # for a file
TOO_LATE = "it did not arrive in the time that a file has"
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What Python takes for public: translation within a network, old site-local and IPv4 in IPv6, NAT64's own address, and
# the address at which Azure answers its machines.
NOT_PUBLIC = [ipaddress.ip_network(one) for one in (
    "64:ff9b:1::/48", "fec0::/10", "::/96", "::ffff:0:0:0/96", "192.0.0.0/24", "168.63.129.16/32",
)]  # fmt: skip


class TooSlow(Exception):  # noqa: N818  (its name is what ingest_failure stores; no ValueError, which http.client takes)
    """The file did not arrive in the time that it has; it is not asked for again."""


def open_web(url: str, seconds: float | None = None) -> http.client.HTTPResponse:
    """Ask for a URL; the answer is to be closed. ``seconds`` is the time for all of it, from now on.

    Raises HTTPError, OSError, ForbiddenLocation or TooSlow, and reading raises OSError or TooSlow.
    """
    check_location(url)
    request = urllib.request.Request(ascii_url(url), headers={"User-Agent": "pgimgsearch"})  # noqa: S310  (checked)
    request.deadline = None if seconds is None else time.monotonic() + seconds  # type: ignore[attr-defined]
    try:
        answer: http.client.HTTPResponse = _OPENER.open(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
    return answer


def ascii_url(url: str) -> str:
    """A URL as it is asked for: umlauts and blanks in percent signs, as browsers do, and those of hosts by IDNA."""
    parts = urlsplit(url)
    host = parts.netloc
    if not host.isascii():
        with suppress(UnicodeError):  # it fails where it is looked up
            host = host.encode("idna").decode()
    path, query = (quote(part, safe="/%:=&?~+!$,;'@()*[]|") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it stands for an IPv4 address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast and not any(found in one for one in NOT_PUBLIC)


def _addresses(host: str, port: int) -> list[Any]:
    """What a host's name means, as getaddrinfo has it; raises ForbiddenLocation where that is not of the internet."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not os.environ.get(ALLOW_PRIVATE):
        private = [entry[4][0] for entry in found if not is_public(str(entry[4][0]))]
        if private:
            raise ForbiddenLocation(f"{host} is the private address {private[0]}: allow it with --allow-private")
    return found


def _connect(address: tuple[str, int], timeout: float, _: object = None) -> socket.socket:
    """Connect to one of the addresses that were checked, and not to what a second look at the name would give."""
    problem: OSError | None = None
    for family, kind, protocol, _, target in _addresses(*address):
        connection = _Socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(target)
        except OSError as error:
            connection.close()
            problem = error
        else:
            return connection
    raise problem or OSError(f"{address[0]} has no address")


class _Timed:
    """What a socket of ours has more: each time that it receives, it has what is left until a deadline."""

    deadline: float | None = None

    def recv_into(self, *args: Any) -> int:
        left = TIMEOUT if self.deadline is None else self.deadline - time.monotonic()
        if left <= 0:  # also where there is always something to receive
            raise TooSlow(TOO_LATE)
        self.settimeout(min(TIMEOUT, left))  # type: ignore[attr-defined]
        try:
            return super().recv_into(*args)  # type: ignore[misc, no-any-return]
        except TimeoutError as error:
            if left < TIMEOUT:
                raise TooSlow(TOO_LATE) from error
            raise


class _Socket(_Timed, socket.socket):
    pass


class _TlsSocket(_Timed, ssl.SSLSocket):
    pass


class _Connection(http.client.HTTPConnection):
    """Connects to checked addresses alone, unless it is to the user's own proxy."""

    def __init__(self, *args: Any, guarded: bool, deadline: float | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline = deadline
        if guarded:
            self._create_connection = _connect

    def connect(self) -> None:
        super().connect()
        if isinstance(self.sock, _Timed):
            self.sock.deadline = self._deadline


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        context = ssl.create_default_context()
        context.sslsocket_class = _TlsSocket
        super().__init__(*args, context=context, **options)


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self._ask(_Connection, request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self._ask(_SecureConnection, request)

    def _ask(self, connection: Any, request: urllib.request.Request) -> Any:
        by_proxy = request.has_proxy() or bool(getattr(request, "_tunnel_host", None))
        if by_proxy:  # which looks the name up; what is known of it here is checked
            target = urlsplit(request.full_url)
            with suppress(socket.gaierror):
                _addresses(target.hostname or "", target.port or 443)
        deadline = getattr(request, "deadline", None)
        return self.do_open(connection, request, guarded=not by_proxy, deadline=deadline)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: Any, answer: Any, code: int, message: str, headers: Any, url: str) -> Any:
        answer.close()  # its body would be read to its end, which it need not have
        check_location(url)
        following = super().redirect_request(request, answer, code, message, headers, url)
        if following is not None:
            following.deadline = request.deadline  # type: ignore[attr-defined]
        return following


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers of ftp:, file: and data:, which a redirect must not reach."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), _Handler(), _Redirects(), urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


_OPENER = _opener()
