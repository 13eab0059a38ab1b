"""Where the files of a model are: local, in the hub's cache, or at a URL; downloads resume and are checked."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pgimgsearch.errors import ModelError
from pgimgsearch.models.spec import ModelSpec
from pgimgsearch.models.weights.load_state import settle_hub_access
from pgimgsearch.settings import cache_folder

CHUNK = 1 << 20
DOWNLOADS = "downloads"


@dataclass(frozen=True, slots=True)
class Origin:
    """A repository of the Hugging Face hub, or a URL.

    ``weights`` are groups of patterns, of which the first that the repository has is taken; ``describing`` go with it.
    """

    place: str
    weights: tuple[tuple[str, ...], ...] = ()
    describing: tuple[str, ...] = ()
    revision: str | None = None

    @property
    def is_url(self) -> bool:
        """Whether it is a plain http(s) URL."""
        return "://" in self.place


def local(spec: ModelSpec) -> Path | None:
    """The local file or folder that the user named, if any; raises ModelError where it is gone."""
    if spec.weights is None:
        return None
    path = Path(spec.weights)
    if not path.exists():
        raise ModelError(
            f"the weights of {spec.name} are gone: {path}",
            hint="put them back, or pass their new path: pgimgsearch ingest ... --weights PATH",
        )
    return path


def download(origin: Origin, cache: Path | None = None) -> Path:
    """The folder of a repository's snapshot, or the file of a URL; fetched unless the cache has it.

    ``cache`` is another cache folder than the user's own. An interrupted download goes on where it stopped.
    """
    if origin.is_url:
        return _fetch_url(origin.place, (cache or cache_folder()) / DOWNLOADS)
    settle_hub_access()
    from huggingface_hub import snapshot_download

    for patterns in origin.weights:
        folder = Path(
            snapshot_download(
                origin.place, revision=origin.revision, cache_dir=cache, allow_patterns=[*patterns, *origin.describing]
            )
        )
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        if any(fnmatch(name, pattern) for name in names for pattern in patterns):
            return folder
    raise ModelError(
        f"the repository {origin.place} holds no weights of a form that can be loaded safely",
        hint=f"it should hold {' or '.join(patterns[0] for patterns in origin.weights)}",
    )


def first(folder: Path, names: Sequence[str]) -> Path:
    """The first of some files that a folder holds; raises ModelError where there is none."""
    for name in names:
        for found in sorted(folder.glob(name)):
            return found
    raise ModelError(f"{folder} holds no weights", hint=f"it should hold {' or '.join(names)}")


def revision_of(path: Path) -> str | None:
    """The commit of a snapshot in the hub's cache, or of a file in one."""
    return next((folder.name for folder in (path, *path.parents) if folder.parent.name == "snapshots"), None)


def sha256_of(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_of(url: str) -> str:
    """What a downloaded file is called."""
    return Path(urlsplit(url).path).name


def _fetch_url(url: str, folder: Path) -> Path:
    """Download into a folder, going on where a part ends; size and hash of what arrived are noted beside it."""
    from filelock import FileLock

    target = folder / name_of(url)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        note = target.with_name(target.name + ".json")
        if target.exists() and note.exists():
            if target.stat().st_size != json.loads(note.read_text())["bytes"]:
                raise ModelError(f"{target} is not what was downloaded", hint=f"remove it and run again: rm {target}")
            return target
        part, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".etag")
        _download(url, part, tag)
        note.write_text(json.dumps({"url": url, "bytes": part.stat().st_size, "sha256": sha256_of(part)}))
        part.replace(target)
        tag.unlink(missing_ok=True)
    return target


def _download(url: str, part: Path, tag: Path) -> None:
    """Append to a part, as long as the file at the URL is the one it is a part of."""
    have = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": tag.read_text()} if have else {}
    try:
        with urlopen(Request(url, headers=headers), timeout=60) as answer:  # noqa: S310  (of the catalog)
            if answer.headers.get("ETag"):
                tag.write_text(answer.headers["ETag"])
            _save(answer, part, have if answer.status == HTTPStatus.PARTIAL_CONTENT else 0)
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # else the part is whole
            raise


def _save(answer: Any, part: Path, have: int) -> None:
    from tqdm import tqdm  # the bar of the hub's downloads too

    left = answer.headers.get("Content-Length")
    total = have + int(left) if left else None
    with part.open("ab" if have else "wb") as file, tqdm(
        desc=part.stem, total=total, initial=have, unit="B", unit_scale=True
    ) as bar:  # fmt: skip
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise ModelError(
            f"the download of {part.stem} ended at {part.stat().st_size} of {total} bytes",
            hint="run the same command again to resume",
        )
