"""Files of object stores and other systems, by the addresses of fsspec: s3://, gs://, az://, hf:// and others."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import fsspec
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential

from pgimgsearch.errors import SourceError
from pgimgsearch.pipeline.decode import register_formats
from pgimgsearch.pipeline.scan import ScannedFile, Source

FOR_GOOD = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")  # what file systems call the time of a file


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed: the store or the network failed, not the file."""
    return isinstance(error, OSError | TimeoutError) and not isinstance(error, FOR_GOOD)


again = retry(
    retry=retry_if_exception(is_transient), stop=stop_after_attempt(4), wait=wait_exponential(multiplier=0.5, max=8),
    reraise=True,
)  # fmt: skip


@cache
def filesystem(scheme: str) -> fsspec.AbstractFileSystem:
    """The file system of a scheme; its settings are those of its own environment (AWS_PROFILE, FSSPEC_* ...)."""
    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        raise SourceError(f"addresses of {scheme}:// cannot be read: {error}", hint=_hint(scheme)) from error


@again
def read(url: str, most: int) -> bytes:
    """At most ``most`` bytes of a file; failures of the store are tried again."""
    with filesystem(url.partition("://")[0]).open(url, "rb") as file:
        data: bytes = file.read(most)
    return data


def prefix_source(url: str) -> Source:
    """All pictures below a prefix, or one file of a store."""
    scheme = url.partition("://")[0]
    store = filesystem(scheme)
    url = store.unstrip_protocol(store._strip_protocol(url)).rstrip("/")  # in the form that its listings have
    try:
        single = again(store.isfile)(url)
        if not single and not again(store.exists)(url):
            raise SourceError(f"there is nothing at {url}", hint="check the address, and what you may read there")
    except OSError as error:
        raise SourceError(f"cannot read {url}: {error}", hint="check the address and your access to it") from error
    root = url.rpartition("/")[0] if single else url
    left_out = [0]

    def files(root: str) -> Iterator[ScannedFile]:
        left_out[0] = 0
        if single:
            yield _described(again(store.info)(url), url, root)
        else:
            yield from _walk(store, scheme, url, root, left_out)

    return Source(url, root.rpartition("/")[2] or scheme, root, files, scope=url, left_out=left_out)


def _walk(
    store: fsspec.AbstractFileSystem, scheme: str, folder: str, root: str, left_out: list[int]
) -> Iterator[ScannedFile]:
    """Pictures below a folder, in order of name; a folder that cannot be listed is told with its error."""
    try:
        entries = sorted(again(store.ls)(folder, detail=True), key=lambda entry: str(entry["name"]))
    except OSError as error:
        yield ScannedFile(_relative(folder, root), folder, problem=error, unlisted=True)
        return
    for entry in entries:
        url = str(store.unstrip_protocol(entry["name"])).rstrip("/")
        name = url.rpartition("/")[2]
        if name.startswith(".") or url == folder:
            continue
        if entry["type"] == "directory":
            yield from _walk(store, scheme, url, root, left_out)
        elif "." + name.rpartition(".")[2].lower() in register_formats():
            yield _described(entry, url, root)
        else:
            left_out[0] += 1


def _described(entry: dict[str, Any], url: str, root: str) -> ScannedFile:
    found = next((entry[name] for name in TIMES if entry.get(name) is not None), None)
    if isinstance(found, int | float):
        found = datetime.fromtimestamp(found, UTC)
    modified = found if isinstance(found, datetime) else None
    return ScannedFile(_relative(url, root), url, entry.get("size"), modified)


def _relative(url: str, root: str) -> str:
    return url.removeprefix(root.rstrip("/") + "/") if root else url


def _hint(scheme: str) -> str:
    packages = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub",
                "http": "aiohttp", "https": "aiohttp"}  # fmt: skip
    known = packages.get(scheme)
    return f"run: pip install {known}" if known else "use http(s)://, s3://, gs://, az:// or hf://"
