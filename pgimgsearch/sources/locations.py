"""Where files may be read from: the one place that decides about every path and URL, given, listed or stored."""

import os
import re
from urllib.parse import urlsplit

from pgimgsearch.errors import SourceError

URL = re.compile("[a-z][a-z0-9+._-]*://", re.IGNORECASE)
WEB = frozenset({"http", "https"})
STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf"})
AZURE = frozenset({"az", "abfs", "abfss", "adl"})  # container@account, which is no user
ROOTS = "PGIMGSEARCH_ROOTS"
LONGEST = 8000  # characters, more than can be stored; patterns take seconds for very long ones


class ForbiddenLocation(ValueError):  # noqa: N818  (its name is what ingest_failure stores)
    """Nothing is read from there: why, and after a semicolon what to do."""


def is_url(path: str) -> bool:
    """Whether a path is a URL, of the web or of an object store."""
    return URL.match(path) is not None


def scheme_of(location: str) -> str:
    """The scheme of a URL; empty for a path."""
    return location.partition("://")[0].lower() if is_url(location) else ""


def is_web(location: str) -> bool:
    """Whether a location is of the web."""
    return scheme_of(location) in WEB


def without_user(location: str) -> str:
    """A URL without user and password, as it may be stored and shown.

    A password may hold an @ or a slash, so all before the last @ goes where a colon precedes it.
    """
    if len(location) > LONGEST:
        return f"{location.partition(':')[0][:100]}:... of {len(location)} characters"
    return re.sub(r"(?<=:/)/*(?:[^/]*|[^/:]+:.*)@", "/", location)


def check_location(location: str) -> None:
    """Raise ForbiddenLocation for a URL of another scheme, with a user in it, or one that fsspec would read as a chain.

    Paths of local files pass. Addresses of the web are checked when they are connected to (``web``).
    """
    if len(location) > LONGEST:
        raise ForbiddenLocation(f"a location of {len(location)} characters is not read; {LONGEST} are the limit")
    if not is_url(location):
        if location.partition(":/")[0].lower() in WEB | STORES:
            raise ForbiddenLocation(f"a URL has two slashes after its scheme: {without_user(location)}")
        return
    scheme = scheme_of(location)
    if scheme not in WEB | STORES:
        known = ", ".join(f"{one}://" for one in ("https", "s3", "gs", "az", "hf"))
        raise ForbiddenLocation(f"{scheme}:// is not read from; use {known} or the path of a file")
    if "::" in re.sub(r"\[[^\]]*\]", "", location):  # but for an IPv6 address
        raise ForbiddenLocation(f"a URL with :: in it is not read: {without_user(location)}")
    try:
        host = urlsplit(location).netloc
        if scheme in WEB:
            _ = urlsplit(location).port
    except ValueError as error:  # its message quotes what may be the begin of a password with a slash in it
        raise ForbiddenLocation(f"not a URL: {without_user(location)}") from error
    user, _, _ = host.rpartition("@")
    if user and (scheme not in AZURE or ":" in user):
        raise ForbiddenLocation(
            "a URL with a user name in it would be stored and shown; put it into the settings of the store "
            "(AWS_PROFILE, FSSPEC_* and the like)"
        )
    if scheme in WEB and (not host or re.search(r"\s", host) or re.search(r"[\\\x00-\x1f\x7f]", location)):
        raise ForbiddenLocation("a URL needs a host, and has no control characters")


def check_named(location: str) -> None:
    """The same for a location that the user names: raises SourceError."""
    try:
        check_location(location)
    except ForbiddenLocation as error:
        why, _, hint = str(error).partition("; ")
        raise SourceError(why, hint=hint or "give the path of a file, or a URL") from error


def stored_location(path: str, root: str | None) -> str:
    """Where a stored path is read from: below its collection's root, unless it is a URL or absolute.

    Raises ForbiddenLocation for a path that leads out of the root, and for one outside of PGIMGSEARCH_ROOTS: the
    folders that stored paths may name, where not everybody who writes to the database may read all files here.
    """
    if is_url(path):
        return path
    if ".." in path.split("/"):
        raise ForbiddenLocation(f"the path {path} leads out of {root or 'a folder'}")
    if root is not None and is_url(root):
        return f"{root.rstrip('/')}/{path}"
    location = os.path.join(root or "", path)  # noqa: PTH118  (an absolute path wins)
    allowed = [folder for folder in os.environ.get(ROOTS, "").split(os.pathsep) if folder]
    if allowed and not any(_is_below(os.path.realpath(location), os.path.realpath(one)) for one in allowed):
        raise ForbiddenLocation(f"{location} is outside of {ROOTS}")
    return location


def shown_location(path: str, root: str | None) -> str:
    """The same for pages: empty, which no file is called, where nothing may be read."""
    try:
        return stored_location(path, root)
    except ForbiddenLocation:
        return ""


def _is_below(path: str, folder: str) -> bool:
    path, folder = os.path.normpath(path), os.path.normpath(folder)
    return path == folder or path.startswith(folder.rstrip("/") + "/")
