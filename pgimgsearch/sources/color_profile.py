"""Embedded colour profiles: what they mean, and from them to sRGB.

The form of a profile: ICC.1:2022, sections 7.2 (header), 7.3 (tag table), 10.6 (curves), 10.18 (parametric curves).
"""

import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

MOST_BYTES = 4 << 20
MOST_TAGS = 200
MOST_SHARED = 4  # times its bytes that the tags of a profile have: curves of several colours are often one
SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
# Tags that describe the profile, and change no colour.
ABOUT = {
    b"desc", b"cprt", b"dmnd", b"dmdd", b"tech", b"vued", b"view", b"meas", b"calt", b"targ", b"ncl2", b"meta", b"mmod",
}  # fmt: skip
SRGB = np.array([[0.4361, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7141]])  # IEC 61966-2-1, at D50
CLOSE, CLOSE_STEPS = 0.003, 1.0  # of a primary, and of 255 steps of a curve
SAMPLES = np.linspace(0, 1, 256)  # all that eight bits can be
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


@dataclass(frozen=True, slots=True)
class ColorProfile:
    """A profile that is not sRGB: ``mode`` of the pixels that it is of, and ``meaning``, a digest of what it does."""

    mode: str
    meaning: bytes
    data: bytes


class BrokenProfile(ValueError):  # noqa: N818  (it is noted, not raised to users)
    """A profile that says nothing of these pixels."""


def profile_of(image: Image.Image) -> ColorProfile | None:
    """The profile of an image, None where it is sRGB or there is none; raises BrokenProfile."""
    data = image.info.get("icc_profile")
    if not data or not isinstance(data, bytes):
        return None
    if len(data) > MOST_BYTES:
        raise BrokenProfile("it has a colour profile of very many bytes")
    found = _read(data)
    if found is not None and (found.mode == "CMYK") != (image.mode == "CMYK"):
        raise BrokenProfile(f"its colour profile is for {found.mode}")
    if found is not None and found.mode == "L" and image.mode not in {"L", "LA", "1"}:
        raise BrokenProfile("its colour profile is for grey")
    return found


def unusable(image: Image.Image) -> ColorProfile:
    """A profile that is not applied here, by its bytes alone, as others may apply it; without ``data``."""
    return ColorProfile(image.mode, hashlib.sha256(bytes(image.info["icc_profile"])).digest(), b"")


def to_srgb(image: Image.Image, profile: ColorProfile) -> Image.Image:
    """Pixels in RGB, RGBA, L or CMYK as sRGB, with their transparency; raises BrokenProfile."""
    clear = image.mode in {"RGBA", "LA"}
    mode = f"{profile.mode}A" if clear and profile.mode == "RGB" else profile.mode
    alpha = image.getchannel("A") if clear and mode != "RGBA" else None
    try:
        pixels = image if image.mode == mode else image.convert(mode)
        found = ImageCms.applyTransform(pixels, _transform(profile.data, mode))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise BrokenProfile("its colour profile cannot be applied") from error
    assert found is not None, "only an in-place transform returns None"
    if alpha is not None:
        found.putalpha(alpha)
    return found


def from_lab(image: Image.Image) -> Image.Image:
    """CIELAB as sRGB."""
    found = ImageCms.applyTransform(image, _lab())
    assert found is not None, "only an in-place transform returns None"
    return found


@lru_cache(maxsize=1)
def _lab() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


@lru_cache(maxsize=16)
def _transform(data: bytes, mode: str) -> Any:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(data)), ImageCms.createProfile("sRGB"), mode,
        "RGBA" if mode == "RGBA" else "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, FLAGS,
    )  # fmt: skip


@lru_cache(maxsize=16)
def _read(data: bytes) -> ColorProfile | None:
    """What a profile means, None for sRGB; raises BrokenProfile."""
    if len(data) < 132 or data[36:40] != b"acsp":
        raise BrokenProfile("its colour profile is none")
    mode = SPACES.get(data[16:20])
    if mode is None:
        raise BrokenProfile("its colour profile is of a space that is not read")
    named = list(_tags(data))
    views = dict(named)
    if len(views) < len(named):
        raise BrokenProfile("its colour profile says something twice")
    if sum(map(len, views.values())) > MOST_SHARED * len(data):
        raise BrokenProfile("the tags of its colour profile overlap")
    tags = {name: bytes(view) for name, view in views.items()}
    if any(tag[:4] == b"mpet" for tag in tags.values()):
        raise BrokenProfile("its colour profile is a program of many steps")
    try:
        if mode == "RGB" and _is_srgb(tags):
            return None
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise BrokenProfile("its colour profile cannot be read") from error
    digest = hashlib.sha256(data[8:24] + data[64:68])  # version, class, spaces and intent
    for name in sorted(tags.keys() - ABOUT):
        digest.update(name + struct.pack("!I", len(tags[name])))
        digest.update(tags[name])
    return ColorProfile(mode, digest.digest(), data)


def _tags(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    (number,) = struct.unpack_from("!I", data, 128)
    if number > MOST_TAGS or len(data) < 132 + 12 * number:
        raise BrokenProfile("its colour profile cannot be read")
    for place in range(132, 132 + 12 * number, 12):
        name, start, size = struct.unpack_from("!4sII", data, place)
        yield name, memoryview(data)[start : start + size]


def _is_srgb(tags: dict[bytes, bytes]) -> bool:
    names = [(b"rXYZ", b"rTRC"), (b"gXYZ", b"gTRC"), (b"bXYZ", b"bTRC")]
    if any(tag[1:3] in {b"2A", b"2B"} for tag in tags) or not all(
        primary in tags and curve in tags for primary, curve in names
    ):
        return False
    primaries = np.array([[value / 65536 for value in struct.unpack_from("!3i", tags[one], 8)] for one, _ in names])
    if np.abs(primaries - SRGB).max() > CLOSE:
        return False
    return all(np.abs(_encoded(_curve(tags[curve])) - SAMPLES).max() * 255 <= CLOSE_STEPS for _, curve in names)


def _encoded(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """The transfer function of sRGB."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _curve(tag: bytes) -> NDArray[np.float64]:
    """A curve at the samples."""
    x = SAMPLES
    if tag[:4] == b"curv":
        (number,) = struct.unpack_from("!I", tag, 8)
        if number == 0:
            return x
        values = np.frombuffer(tag, ">u2", number, 12).astype(np.float64)
        return x ** (values[0] / 256) if number == 1 else np.interp(x, np.linspace(0, 1, number), values / 65535)
    if tag[:4] != b"para":
        raise ValueError("no curve")
    (kind,) = struct.unpack_from("!H", tag, 8)
    given = [value / 65536 for value in struct.unpack_from(f"!{(1, 3, 4, 5, 7)[kind]}i", tag, 12)]
    g, a, b, c, d, e, f = np.pad(given, (0, 7 - len(given)))
    if kind == 0:
        return np.asarray(x**g)
    powered = np.maximum(a * x + b, 0) ** g
    if kind == 1:
        return np.asarray(np.where(x >= -b / a, powered, 0))
    if kind == 2:
        return np.asarray(np.where(x >= -b / a, powered + c, c))
    return np.asarray(np.where(x >= d, powered + e, c * x + f))
