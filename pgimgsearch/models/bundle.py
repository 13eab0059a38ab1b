"""Downloads ahead of use, and bundles of them for machines without a network.

A bundle is a folder in the layout of the hub's cache, with a manifest of every file's size and SHA-256.
"""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from pgimgsearch.errors import ModelError
from pgimgsearch.models import encoder, files
from pgimgsearch.models.spec import ModelSpec
from pgimgsearch.models.weights import loading
from pgimgsearch.settings import cache_folder

MANIFEST = "manifest.json"


def fetch(spec: ModelSpec, to: Path | None = None) -> dict[str, Any]:
    """Download all that a model needs, into the caches or into a bundle. Returns its entry of the manifest.

    Raises ModelError where a file is not what the hub says it is; an interrupted download goes on where it stopped.
    """
    if spec.backend in {"pdq", "palette"}:
        return {"checkpoint": spec.checkpoint, "revision": None, "files": {}}
    encoder.require(spec)
    backend = importlib.import_module(encoder.BACKENDS[spec.backend][0])
    with loading(spec):
        origins = [backend.origin(spec), *(backend.companions(spec) if hasattr(backend, "companions") else ())]
        places = [files.download(origin, to) for origin in origins]
    found: dict[str, Any] = {}
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else (place, place.with_name(place.name + ".json")):
            if path.is_file():
                found[_name(path, place)] = {"bytes": path.stat().st_size, "sha256": _checked(path)}
    entry = {"checkpoint": spec.checkpoint, "revision": files.revision_of(places[0]), "files": found}
    if to is not None:
        models = _read(to) if (to / MANIFEST).exists() else {}
        (to / MANIFEST).write_text(json.dumps(models | {spec.name: entry}, indent=1))
    return entry


def install(spec: ModelSpec, bundle: Path) -> dict[str, Any]:
    """Take a model out of a bundle into the caches, where every command finds it. Returns its entry of the manifest.

    Raises ModelError for a model that the bundle does not hold, and for files that are not those it was made with.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    models = _read(bundle)
    if spec.name not in models:
        raise ModelError(
            f"the bundle {bundle} does not hold {spec.name}", hint=f"it holds: {', '.join(sorted(models)) or 'nothing'}"
        )
    entry: dict[str, Any] = models[spec.name]
    for name, told in entry["files"].items():
        _compare(bundle / name, told)
    for top in sorted({Path(name).parts[0] for name in entry["files"]}):
        target = cache_folder() / top if top == files.ADDRESSES else Path(HF_HUB_CACHE) / top
        shutil.copytree(bundle / top, target, symlinks=True, dirs_exist_ok=True)
    return entry


def _name(path: Path, place: Path) -> str:
    """A file's path inside its cache."""
    top = place.parent.parent if place.is_dir() else place.parent
    return str(path.relative_to(top.parent))


def _checked(path: Path) -> str:
    """The hash of a file; the hub's cache names large ones by the hash they should have."""
    found = files.sha256_of(path)
    promised = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", promised) and promised != found:
        raise ModelError(
            f"{path.name} has a wrong checksum: {found[:12]}... instead of {promised[:12]}...",
            hint=f"remove it and run again: rm {path.resolve()}",
        )
    return found


def _compare(path: Path, told: dict[str, Any]) -> None:
    if not path.exists():
        raise ModelError(f"the bundle lacks {path}", hint="copy it again, with links: tar, or rsync -a")
    if path.stat().st_size != told["bytes"]:
        raise ModelError(
            f"{path} is truncated: {path.stat().st_size} of {told['bytes']} bytes", hint="copy the bundle again"
        )
    if files.sha256_of(path) != told["sha256"]:
        raise ModelError(f"{path} has a wrong checksum", hint="copy the bundle again")


def _read(bundle: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads((bundle / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{bundle} is no bundle: {error}", hint=f"make one: pgimgsearch models fetch NAME --to {bundle}"
        ) from error
    return read
