"""Files of object stores and other systems, by the URLs of fsspec: s3://, gs://, az://, hf:// and others."""

import os
import tarfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential

from pgimgsearch.errors import PgImgSearchError, SourceError
from pgimgsearch.sources.decode import register_formats
from pgimgsearch.sources.locations import check_named
from pgimgsearch.sources.selection import LeftOut, Selection
from pgimgsearch.sources.source import ScannedFile, Source

# What another try would not change; the libraries of stores have errors of their own for what it would.
FOR_GOOD = (
    FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ValueError, TypeError, KeyError,
    EOFError, ImportError, zlib.error, tarfile.TarError, PgImgSearchError,
)  # fmt: skip
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")  # what stores call it
PACKAGES = {
    "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub",
}  # fmt: skip


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed: the store or the network failed, not the file."""
    return isinstance(error, Exception) and not isinstance(error, FOR_GOOD)


again = retry(
    retry=retry_if_exception(is_transient), stop=stop_after_attempt(4), wait=wait_exponential(multiplier=0.5, max=8),
    reraise=True,
)  # fmt: skip


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The store of a URL, and the path in it; its settings are those of its own environment (AWS_PROFILE ...)."""
    check_named(url)
    scheme = url.partition("://")[0]
    try:
        store, path = url_to_fs(url, use_listings_cache=False)
    except Exception as error:  # each store's library raises its own
        package = PACKAGES.get(scheme)
        hint = f"run: pip install {package}" if package else "use s3://, gs://, az:// or hf://"
        raise SourceError(f"{scheme}:// URLs cannot be read: {error}", hint=hint) from error
    return store, path


@again
def read_object(url: str, most: int) -> bytes:
    """At most ``most`` bytes of a file; failures of the store are tried again."""
    store, path = filesystem(url)
    with store.open(path, "rb") as file:
        data: bytes = file.read(most)
    return data


def prefix_source(url: str, selection: Selection | None = None) -> Source:
    """All images below a prefix, or one file of a store."""
    store, path = filesystem(url)
    url = store.unstrip_protocol(path).rstrip("/")  # in the form that its listings have
    try:
        found = again(store.info)(path)
    except FileNotFoundError as error:
        raise SourceError(f"there is nothing at {url}", hint="check the URL and your access to it") from error
    except Exception as error:  # the libraries of stores raise many kinds
        raise SourceError(
            f"cannot read {url}: {type(error).__name__}: {error}", hint="check the URL and your access to it"
        ) from error
    single = found["type"] == "file"
    root = url.rpartition("/")[0] if single else url
    chosen, left_out = selection or Selection(), LeftOut()

    def files(root: str) -> Iterator[ScannedFile]:
        left_out.clear()
        if single:
            yield _described(again(store.info)(path), url, root)
        else:
            yield from _walk(store, url, url, root, chosen, left_out)

    return Source(url, root.rpartition("/")[2] or url.partition("://")[0], root, files, scope=url, left_out=left_out)


def _walk(
    store: AbstractFileSystem, folder: str, top: str, root: str, selection: Selection, left_out: LeftOut
) -> Iterator[ScannedFile]:  # fmt: skip
    """Images below a folder, in order of name; a folder that cannot be listed is told with its error."""
    try:
        entries = sorted(again(store.ls)(folder, detail=True), key=lambda entry: str(entry["name"]))
    except Exception as error:  # as above
        yield ScannedFile(_relative(folder, root), folder, problem=error, unlisted=True)
        return
    for entry in entries:
        url = str(store.unstrip_protocol(entry["name"])).rstrip("/")
        name, inside = url.rpartition("/")[2], _relative(url, top)
        extension = os.path.splitext(name)[1].lower()  # noqa: PTH122
        if name.startswith(".") or url == folder:
            continue
        is_folder = entry["type"] == "directory"
        if is_folder and selection.enters(inside):
            yield from _walk(store, url, top, root, selection, left_out)
        elif not is_folder and extension not in register_formats():
            left_out.add(extension)
        elif not is_folder and selection.takes(inside):
            yield _described(entry, url, root)
        else:
            left_out.exclude(inside)


def _described(entry: dict[str, Any], url: str, root: str) -> ScannedFile:
    found = next((entry[name] for name in TIMES if entry.get(name) is not None), None)
    if isinstance(found, int | float):
        found = datetime.fromtimestamp(found, UTC)
    modified = found if isinstance(found, datetime) else None
    return ScannedFile(_relative(url, root), url, entry.get("size"), modified)


def _relative(url: str, root: str) -> str:
    return url.removeprefix(root.rstrip("/") + "/") if root else url
