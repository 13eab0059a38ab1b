"""The files that an ONNX model keeps its weights in, read from the model itself: their names may be anything.

The numbers are those of the fields in onnx.proto (ONNX 1.21), of which only the way to the tensors matters here.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from pgimgsearch.errors import ModelError

# message -> field -> the message in it
FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
LOCATION = b"location"
VARINT, LONG, BYTES, SHORT = 0, 1, 2, 5  # how protobuf writes a field


def external_data(path: Path) -> list[Path]:
    """The files beside a model that it names; raises ModelError for a name that leads out of its folder."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            names = sorted({name.decode() for name in _locations(data, 0, len(data), "model")})
            if any("\0" in name for name in names):
                raise ValueError("the name of a file holds a NUL character")
    except (IndexError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no ONNX model: {error}", hint="export or download it again") from error
    folder, found = path.parent.resolve(), []
    for name in names:
        part = path.parent / name
        if not part.resolve().is_relative_to(folder) and not _is_beside(path, part):
            raise ModelError(f"{path} keeps weights outside of its folder: {name}", hint="export it in one folder")
        if not part.is_file():
            raise ModelError(f"{path} needs the file {name} beside it", hint="download or copy it too")
        found.append(part)
    return found


def _is_beside(path: Path, part: Path) -> bool:
    """In the hub's cache both are links to files in one folder elsewhere."""
    return ".." not in part.parts and part.is_symlink() and part.resolve().parent == path.resolve().parent


def _locations(data: mmap.mmap, start: int, end: int, message: str) -> Iterator[bytes]:
    for field, begin, stop in _fields(data, start, end):
        inner = FIELDS[message].get(field)
        if inner == "entry":
            pair = {number: data[one:other] for number, one, other in _fields(data, begin, stop)}
            if pair.get(1) == LOCATION:
                yield pair.get(2, b"")
        elif inner is not None:
            yield from _locations(data, begin, stop, inner)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field of a message that holds bytes; the others are passed over."""
    place = start
    while place < end:
        key, place = _varint(data, place)
        if key >> 32:  # readers cut it to 32 bits, and see another field
            raise ValueError(f"unknown field at byte {place}")
        if key & 7 == VARINT:
            _, place = _varint(data, place)
        elif key & 7 == BYTES:
            size, place = _varint(data, place)
            if place + size > end:
                raise ValueError("it breaks off")
            yield key >> 3, place, place + size
            place += size
        elif key & 7 in {LONG, SHORT}:
            place += 8 if key & 7 == LONG else 4
        else:
            raise ValueError(f"unknown field at byte {place}")


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError(f"a number without end at byte {place}")
