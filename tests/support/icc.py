"""Colour profiles for tests, built by the specification: three primaries, a white point and a curve."""

import struct

import numpy as np
from numpy.typing import NDArray

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = (0.3127, 0.3290)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SPACES: dict[str, tuple[tuple[tuple[float, float], ...], tuple[float, float], float | None]] = {
    "srgb": (((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, None),
    "p3": (((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), D65, None),
    "adobe": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, 2.19921875),
    "prophoto": (((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), (0.3457, 0.3585), 1.8),
    "rec2020": (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65, 2.4),
}


def rgb_profile(space: str, text: str = "made for a test") -> bytes:
    """A profile of three primaries (ICC.1:2022, section 8.3); without a gamma the curve is that of sRGB."""
    primaries, white, gamma = SPACES[space]
    matrix = np.stack([_xyz(*one) for one in primaries], axis=1)
    matrix = matrix * np.linalg.solve(matrix, _xyz(*white))
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ _xyz(*white))) @ BRADFORD @ matrix
    curve = _gamma(gamma) if gamma else _srgb_curve()
    tags = [(b"desc", _text(text)), (b"wtpt", _numbers(D50))]
    for name, column in zip((b"r", b"g", b"b"), adapted.T, strict=True):
        tags += [(name + b"XYZ", _numbers(column)), (name + b"TRC", curve)]
    return _profile(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    """A profile of grey with a curve."""
    return _profile(b"GRAY", [(b"desc", _text("grey")), (b"wtpt", _numbers(D50)), (b"kTRC", _gamma(gamma))])


def _xyz(x: float, y: float) -> NDArray[np.float64]:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _numbers(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack("!3i", *(round(float(value) * 65536) for value in values))


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack("!IH", 1, round(gamma * 256))


def _srgb_curve() -> bytes:
    parts = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para\0\0\0\0" + struct.pack("!HH5i", 3, 0, *(round(part * 65536) for part in parts))


def _text(text: str) -> bytes:
    data = text.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack("!I", len(data)) + data + bytes(78)


def _profile(space: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    place, table, content = 132 + 12 * len(tags), struct.pack("!I", len(tags)), b""
    for name, data in tags:
        padded = data + bytes(-len(data) % 4)
        table += name + struct.pack("!II", place + len(content), len(data))
        content += padded
    head = struct.pack("!I4s4s4s4s4s", place + len(content), b"test", b"\2\x40\0\0", b"mntr", space, b"XYZ ")
    head += (
        bytes(12) + b"acsp" + bytes(28) + struct.pack("!3i", *(round(float(one) * 65536) for one in D50)) + bytes(48)
    )
    return head + table + content
