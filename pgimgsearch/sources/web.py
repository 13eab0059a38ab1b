"""Files of the web: no private addresses unless they are allowed, at every redirect, and a deadline for all of it."""

import http.client
import ipaddress
import os
import socket
import time
import urllib.request
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from pgimgsearch.settings import ALLOW_PRIVATE
from pgimgsearch.sources.locations import ForbiddenLocation, check_location

TIMEOUT = 30.0  # without a byte
DEADLINE = 300.0  # for a file
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Answer:
    """The body of an answer, to read from once; raises TimeoutError after the deadline."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response, self._end = response, time.monotonic() + DEADLINE

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes, all with -1; fewer at the end alone."""
        parts, left = [], size
        while left != 0:
            if time.monotonic() > self._end:
                raise TimeoutError(f"not read within {DEADLINE:g} s")
            part = self._response.read1(min(left, 1 << 16) if left > 0 else 1 << 16)
            if not part:
                break
            parts.append(part)
            left -= len(part) if left > 0 else 0
        return b"".join(parts)


def open_web(url: str) -> Answer:
    """Ask for a URL; raises HTTPError, OSError or ForbiddenLocation."""
    check_location(url)
    request = urllib.request.Request(url, headers={"User-Agent": "pgimgsearch"})  # noqa: S310  (checked)
    try:
        return Answer(_OPENER.open(request, timeout=TIMEOUT))
    except HTTPError as error:
        error.close()  # it holds the connection
        raise


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it stands for an IPv4 address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


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
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(target)
        except OSError as error:
            connection.close()
            problem = error
        else:
            return connection
    raise problem or OSError(f"{address[0]} has no address")


class _Http(http.client.HTTPConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = _connect


class _Https(http.client.HTTPSConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = _connect


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_chosen(request, _Http), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_chosen(request, _Https), request)


def _chosen(request: urllib.request.Request, guarded: Any) -> Any:
    """A connection that checks; to the user's own proxy one that does not, after the target was checked."""
    if not request.has_proxy() and not getattr(request, "_tunnel_host", None):
        return guarded
    target = urlsplit(request.full_url)
    _addresses(target.hostname or "", target.port or 443)
    return guarded.__base__


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: Any, answer: Any, code: int, message: str, headers: Any, url: str) -> Any:
        try:
            check_location(url)
        except ForbiddenLocation:
            answer.close()
            raise
        return super().redirect_request(request, answer, code, message, headers, url)


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
