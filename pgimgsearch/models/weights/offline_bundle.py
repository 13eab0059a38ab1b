"""Downloads ahead of use, and bundles of them for machines without a network.

A bundle is a folder in the layout of the hub's cache, with a manifest of every file's size and SHA-256.
"""

import json
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from pgimgsearch.errors import ModelError
from pgimgsearch.models.backends import backend_module, backends
from pgimgsearch.models.load import require
from pgimgsearch.models.spec import ModelSpec
from pgimgsearch.models.weights import download as files
from pgimgsearch.models.weights.load_state import loading
from pgimgsearch.settings import cache_folder

MANIFEST = "manifest.json"


def fetch(spec: ModelSpec, to: Path | None = None) -> dict[str, Any]:
    """Download all that a model needs, into the caches or into a bundle. Returns its entry of the manifest.

    Raises ModelError where a file is not what the hub says it is; an interrupted download goes on where it stopped.
    """
    if spec.weights is not None:
        raise ModelError(f"{spec.name} is on this machine: there is nothing to fetch", hint=f"copy {spec.weights}")
    entry: dict[str, Any] = {"checkpoint": spec.checkpoint, "revision": None, "files": {}, "refs": {}}
    if origins := _origins(spec):
        with loading(spec):
            places = [files.download(origin, to) for origin in origins]
        for origin, place in zip(origins, places, strict=True):
            _describe(entry, origin, place)
        entry["revision"] = files.revision_of(places[0])
    if to is not None:
        models = _read(to) if (to / MANIFEST).exists() else {}
        to.mkdir(parents=True, exist_ok=True)
        (to / MANIFEST).write_text(json.dumps(models | {spec.name: entry}, indent=1))
    return entry


def install(spec: ModelSpec, bundle: Path) -> dict[str, Any]:
    """Take a model out of a bundle into the caches, where every command finds it. Returns its entry of the manifest.

    Raises ModelError for a model that the bundle does not hold, for files that are not those it was made with, and for
    files of other models.
    """
    from huggingface_hub.file_download import repo_folder_name

    models = _read(bundle)
    if spec.name not in models:
        raise ModelError(
            f"the bundle {bundle} does not hold {spec.name}", hint=f"it holds: {', '.join(sorted(models)) or 'nothing'}"
        )
    entry: dict[str, Any] = models[spec.name]
    repositories, urls = set[str](), set[str]()
    for origin in _origins(spec):
        if origin.is_url:
            name = files.name_of(origin.place)
            urls |= {f"{files.DOWNLOADS}/{name}", f"{files.DOWNLOADS}/{name}.json"}
        else:
            repositories.add(repo_folder_name(repo_id=origin.place, repo_type="model"))
    for path in map(PurePosixPath, (*entry["files"], *entry["refs"])):
        inside = path.parts and path.parts[0] in repositories and ".." not in path.parts
        if not inside and str(path) not in urls:
            raise ModelError(f"the bundle's {spec.name} names a file that is not the model's: {path}",
                             hint="do not trust this bundle")  # fmt: skip
    for name, told in entry["files"].items():
        _compare(bundle / name, told)
    for name, told in entry["files"].items():
        target = _in_cache(name)
        if not (
            target.exists() and target.stat().st_size == told["bytes"] and files.sha256_of(target) == told["sha256"]
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copyfile(bundle / name, target)
    for name, commit in entry["refs"].items():
        target = _in_cache(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(commit)
    return entry


def _origins(spec: ModelSpec) -> list[files.Origin]:
    if not backends()[spec.backend].has_weights:
        return []
    require(spec)
    backend = backend_module(spec.backend)
    with loading(spec):
        return [backend.origin(spec), *(backend.companions(spec) if hasattr(backend, "companions") else ())]


def _describe(entry: dict[str, Any], origin: files.Origin, place: Path) -> None:
    """Add the files of one place to an entry, by their paths inside its cache."""
    if place.is_dir():
        repository = place.parent.parent
        found = {path: f"{repository.name}/{path.relative_to(repository)}" for path in sorted(place.rglob("*"))}
        if place.name != origin.revision:
            entry["refs"][f"{repository.name}/refs/{origin.revision or 'main'}"] = place.name
    else:
        note = place.with_name(place.name + ".json")
        found = {path: f"{files.DOWNLOADS}/{path.name}" for path in (place, note)}
        if json.loads(note.read_text())["sha256"] != files.sha256_of(place):
            raise ModelError(f"{place} has a wrong checksum", hint=f"remove it and run again: rm {place}")
    for path, name in found.items():
        if path.is_file():
            entry["files"][name] = {"bytes": path.stat().st_size, "sha256": _checked(path)}


def _in_cache(name: str) -> Path:
    """Where a file of a bundle belongs."""
    from huggingface_hub.constants import HF_HUB_CACHE

    path = PurePosixPath(name)
    return (cache_folder() if path.parts[0] == files.DOWNLOADS else Path(HF_HUB_CACHE)) / path


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
