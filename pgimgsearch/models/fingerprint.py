"""What makes vectors comparable: the same weights, preprocessing and output give the same fingerprint."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

DECODING = 3  # how files become pixels (sources.decode): colours to sRGB, depth, transparency; raised when that changes


def digest(weights: Iterable[tuple[str, memoryview | bytes]]) -> str:
    """Hash named weights, in any order."""
    hashed = hashlib.sha256()
    for name, data in sorted(weights, key=lambda item: item[0]):
        hashed.update(name.encode())
        hashed.update(data)
    return hashed.hexdigest()


def fingerprint(weights: str, preprocess: Mapping[str, Any], output: str) -> str:
    """Hash the digest of the weights, preprocessing and output. Device and dtype of a run are no part of it."""
    made = [weights, preprocess, output, DECODING]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
