"""What makes vectors comparable: the same weights, preprocessing and output give the same fingerprint."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def fingerprint(weights: Iterable[tuple[str, memoryview | bytes]], preprocess: dict[str, Any], output: str) -> str:
    """Hash named weights (in any order), preprocessing and output. Device and dtype of a run are no part of it."""
    digest = hashlib.sha256()
    for name, data in sorted(weights, key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(data)
    digest.update(json.dumps([preprocess, output], sort_keys=True).encode())
    return digest.hexdigest()
