"""Exports to ONNX in the cache: a folder each, which is there whole or not at all."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pgimgsearch.settings import cache_folder

UNFINISHED = ".unfinished-"
SECONDS_TO_FINISH = 86_400  # after which what a killed export left is removed


@dataclass(frozen=True, slots=True)
class Export:
    """What export.json says: ``fingerprints`` and ``dims`` are by output, the main one first."""

    fingerprints: dict[str, str]
    dims: dict[str, int]
    preprocess: dict[str, Any]
    revision: str | None
    logit_scale: float | None
    logit_bias: float | None
    cleaner: str | None  # of texts; None where there is no text tower
    matrix_products: bool  # of which int8 makes faster ones

    def write(self, folder: Path) -> None:
        """Describe a folder."""
        (folder / "export.json").write_text(json.dumps(asdict(self), indent=1))


def exports_folder() -> Path:
    """Where exports are kept; another form of them would get another number."""
    return cache_folder() / "onnx" / "1"


def read_export(folder: Path) -> Export:
    """The description of an export."""
    return Export(**json.loads((folder / "export.json").read_text()))


def find_export(made: Callable[[str], bool]) -> Path | None:
    """The folder of the export of which a fingerprint passes a test."""
    for file in sorted(exports_folder().glob("*/export.json")):
        folder = file.parent
        if not folder.name.startswith(UNFINISHED) and any(map(made, read_export(folder).fingerprints.values())):
            return folder
    return None


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made unless it is there."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f"{UNFINISHED}*"):
        if time.time() - leftover.stat().st_mtime > SECONDS_TO_FINISH:
            shutil.rmtree(leftover, ignore_errors=True)
    with TemporaryDirectory(dir=folder.parent, prefix=UNFINISHED, ignore_cleanup_errors=True) as made:
        make(Path(made))
        try:
            Path(made).rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first
                raise
    return folder
