"""What libtiff says of a broken file, for the failure's reason: by itself it writes to the terminal."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import _imaging

MOST_LINES = 3  # of a file that says something of every row
LINE = 200  # bytes
Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)  # module, format, va_list


class _Said(threading.local):
    """What was said in this thread, where libtiff calls back."""

    lines: list[str] | None = None


_said = _Said()


@contextmanager
def explained() -> Iterator[None]:
    """Raise an OSError of the block with what libtiff said meanwhile."""
    _listen()
    lines: list[str] = []
    _said.lines = lines
    try:
        yield
    except OSError as error:
        if not lines:
            raise
        raise type(error)(f"{error}: {'; '.join(lines)}") from error
    finally:
        _said.lines = None


@cache
def _listen() -> object:
    """Take libtiff's messages, where Pillow has one that can be found; the answer keeps the handler alive."""
    try:
        write = ctypes.CDLL(None).vsnprintf
        listen = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError, TypeError):  # by the system and by how Pillow was built
        return None

    def take(module: bytes | None, form: bytes, values: int | None) -> None:
        if _said.lines is None or len(_said.lines) >= MOST_LINES:
            return
        line = ctypes.create_string_buffer(LINE)
        write(line, ctypes.c_size_t(LINE), form, ctypes.c_void_p(values))
        words = filter(None, [module, line.value])
        _said.lines.append(": ".join(part.decode("utf-8", "replace") for part in words))

    handler = Handler(take)
    listen(handler)
    return handler
