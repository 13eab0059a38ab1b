"""Decode: the time from bytes to pixels with their hash and facts, over Pillow to the same array, on drawn images.

Images of one frame, without a profile, with sRGB, and with one that is converted, whose cost is apart.
"""

import io
import time
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from benchmarks.harness import report, sized
from pgimgsearch.sources.decode import decode
from tests.support.icc import rgb_profile

SIZES = {"0.2 megapixels": (516, 388), "12 megapixels": (4000, 3000)}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILES = {"no profile": None, "sRGB": SRGB, "Display P3": rgb_profile("p3")}
MOST = 1.2


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth colours with grain, which a JPEG holds in as many bits a pixel as those of cameras."""
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (size[1], size[0], 1)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(coarse, np.float32) + grain, 0, 255).astype(np.uint8))


def pillow(data: bytes) -> np.ndarray[Any, Any]:
    """What nearly all write."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def ours(data: bytes) -> np.ndarray[Any, Any]:
    """The same, with what is stored of the image."""
    return np.asarray(decode(data)[0])


def milliseconds(data: bytes, rounds: int) -> tuple[float, float]:
    """Medians of both, in turns."""
    taken: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        starts = [time.perf_counter()]
        for run in (pillow, ours):
            run(data)
            starts.append(time.perf_counter())
        taken.append((starts[1] - starts[0], starts[2] - starts[1]))
    bare, whole = zip(*taken[1:], strict=True)
    return median(bare) * 1000, median(whole) * 1000


def main() -> dict[str, object]:
    """JPEG, as nearly all photos are."""
    rows: list[dict[str, Any]] = []
    for name, size in SIZES.items():
        drawn = photo(size)
        for told, profile in PROFILES.items():
            out = io.BytesIO()
            drawn.save(out, "JPEG", quality=90, **({} if profile is None else {"icc_profile": profile}))
            bare, whole = milliseconds(out.getvalue(), sized(300 if size[0] < 1000 else 30))
            rows.append({"image": name, "profile": told, "Pillow, ms": bare, "ours, ms": whole, "ratio": whole / bare})
    worst = max(row["ratio"] for row in rows if row["profile"] != "Display P3")
    return report("Decode: pixels, hash and facts over Pillow to the same array", rows, worst, f"at most {MOST}")


if __name__ == "__main__":
    main()
