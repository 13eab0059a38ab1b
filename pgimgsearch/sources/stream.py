"""A file, object or web page as a stream: shards and exports, which are read without holding all of them."""

import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pgimgsearch.sources.locations import check_location, is_url, is_web
from pgimgsearch.sources.object_store import filesystem
from pgimgsearch.sources.web import open_web

ESCAPED = re.compile(r"\\x([89a-f][0-9a-f])")  # a byte of a name that is no UTF-8, as it is stored


def open_file(path: str) -> io.BufferedReader:
    """Open a regular file, also by a name as it is stored: a pipe without a writer would be waited for for ever."""
    how = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, how)
    except FileNotFoundError:
        if (name := ESCAPED.sub(lambda found: chr(0xDC00 + int(found[1], 16)), path)) == path:
            raise
        handle = os.open(name, how)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "not a regular file")
    return os.fdopen(handle, "rb")


@contextmanager
def open_stream(location: str, *, seekable: bool = False) -> Iterator[Any]:
    """Open one to read from; what is of the web and must be ``seekable`` is copied to disk first."""
    check_location(location)
    if not is_url(location):
        with open_file(location) as file:
            yield file
    elif not is_web(location):
        store, path = filesystem(location)
        with store.open(path, "rb") as stream:
            yield stream
    else:
        with open_web(location) as answer:
            if not seekable:
                yield answer
                return
            with tempfile.TemporaryFile() as copy:
                while part := answer.read(1 << 20):
                    copy.write(part)
                copy.seek(0)
                yield copy
