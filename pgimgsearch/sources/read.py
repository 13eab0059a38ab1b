"""Bytes of a file or of a URL, with a limit; transient failures of the network are tried again."""

import os
import time
from urllib.error import HTTPError, URLError

from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential

from pgimgsearch.sources import webdataset
from pgimgsearch.sources.locations import check_location, is_url, is_web
from pgimgsearch.sources.object_store import read_object
from pgimgsearch.sources.silent_hosts import silent_hosts
from pgimgsearch.sources.source import ScannedFile
from pgimgsearch.sources.stream import open_file
from pgimgsearch.sources.web import DEADLINE, TooSlow, open_web

SECONDS_OF_GRACE, LEAST_RATE = 30, 1000  # bytes a second, after so many seconds


class TooManyBytes(ValueError):  # noqa: N818  (its name is what ingest_failure stores)
    """The file is larger than the limit; it was not read."""


class EmptyFile(ValueError):  # noqa: N818
    """The file holds nothing."""


def read_bytes(location: str, max_bytes: int) -> bytes:
    """Read a file, a URL or a member of a tar. Raises OSError, TooManyBytes, EmptyFile or ForbiddenLocation."""
    check_location(location)
    if webdataset.is_member(location):
        data = webdataset.read_member(location, max_bytes + 1)
    elif is_web(location):
        with silent_hosts.asked(location):  # counts a URL once, however often it is tried
            data = _download(location, max_bytes)
    elif is_url(location):
        data = read_object(location, max_bytes + 1)
    else:
        data = _read_file(location, max_bytes)
    return checked(data, max_bytes)


def checked(data: bytes, max_bytes: int) -> bytes:
    """The bytes, unless there are none or too many."""
    if not data:
        raise EmptyFile("the file is empty")
    return _limited(data, max_bytes)


def content(file: ScannedFile, max_bytes: int) -> bytes:
    """The bytes of a scanned file: what its source has read of it, else from where it lies."""
    return read_bytes(file.location, max_bytes) if file.data is None else checked(file.data, max_bytes)


def _read_file(path: str, max_bytes: int) -> bytes:
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise TooManyBytes(_over(max_bytes))
        return _limited(file.read(max_bytes + 1), max_bytes)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HTTPError):
        return error.code in {408, 425, 429, 500, 502, 503, 504}
    return isinstance(error, URLError | TimeoutError | ConnectionError)


@retry(
    retry=retry_if_exception(_is_transient),
    stop=stop_after_attempt(3),
    wait=wait_exponential(multiplier=0.5, max=4),
    reraise=True,
)
def _download(url: str, max_bytes: int) -> bytes:
    data, start = bytearray(), time.monotonic()  # one array, as parts may be of a byte
    with open_web(url, DEADLINE) as answer:
        while len(data) <= max_bytes and (part := answer.read1(1 << 20)):
            data += part
            seconds = time.monotonic() - start
            if seconds > SECONDS_OF_GRACE and len(data) < seconds * LEAST_RATE:
                raise TooSlow(f"{len(data)} bytes in {seconds:.0f} s; at least {LEAST_RATE} a second are waited for")
        told = answer.headers.get("Content-Length", "")
        if told.isdigit() and len(data) < min(int(told), max_bytes + 1):
            raise ConnectionError(f"the transfer broke off: {len(data)} of {told} bytes")
    return _limited(bytes(data), max_bytes)


def _limited(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise TooManyBytes(_over(max_bytes))
    return data


def _over(max_bytes: int) -> str:
    return f"over the limit of {max_bytes / 1e6:g} MB"
