"""Where the files of a model are: local, in the hub's cache, or behind an address; downloads resume and are checked."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pgimgsearch.errors import ModelError
from pgimgsearch.models.spec import ModelSpec
from pgimgsearch.models.weights import settle_hub_access
from pgimgsearch.settings import cache_folder

CHUNK = 1 << 20
ADDRESSES = "addresses"


@dataclass(frozen=True, slots=True)
class Origin:
    """A repository of the Hugging Face hub, or an address.

    ``weights`` are patterns of the files wanted, ``otherwise`` those to take where there are none of them, and
    ``describing`` go with either.
    """

    place: str
    weights: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()
    describing: tuple[str, ...] = ()
    revision: str | None = None

    @property
    def is_address(self) -> bool:
        """Whether it is a plain http(s) address."""
        return "://" in self.place


def local(spec: ModelSpec) -> Path | None:
    """The local file or folder that the user named, if any."""
    return Path(spec.weights) if spec.weights else None


def download(origin: Origin, cache: Path | None = None) -> Path:
    """The folder of a repository's snapshot, or the file of an address; fetched unless the cache has it.

    ``cache`` is another cache folder than the user's own. An interrupted download goes on where it stopped.
    """
    if origin.is_address:
        return _fetch_address(origin.place, (cache or cache_folder()) / ADDRESSES)
    settle_hub_access()
    from huggingface_hub import snapshot_download

    for patterns in (origin.weights, origin.otherwise):
        if patterns:
            folder = Path(
                snapshot_download(
                    origin.place, revision=origin.revision, cache_dir=cache,
                    allow_patterns=[*patterns, *origin.describing],
                )
            )  # fmt: skip
            if any(True for pattern in patterns for _ in folder.glob(pattern)):
                return folder
    raise ModelError(
        f"the repository {origin.place} holds no weights of a form that can be loaded safely",
        hint=f"it should hold {' or '.join((*origin.weights, *origin.otherwise))}",
    )


def first(folder: Path, names: Sequence[str]) -> Path:
    """The first of some files that a folder holds; raises ModelError where there is none."""
    for name in names:
        for found in sorted(folder.glob(name)):
            return found
    raise ModelError(f"{folder} holds no weights", hint=f"it should hold {' or '.join(names)}")


def revision_of(path: Path) -> str | None:
    """The commit of a snapshot in the hub's cache."""
    return path.name if path.parent.name == "snapshots" else None


def sha256_of(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_address(address: str, folder: Path) -> Path:
    """Download into a folder, going on where a part ends; what arrived is noted beside it and checked from then on."""
    target = folder / Path(urlsplit(address).path).name
    note = target.with_name(target.name + ".json")
    if target.exists() and note.exists():
        if target.stat().st_size != json.loads(note.read_text())["bytes"]:
            raise ModelError(f"{target} is not what was downloaded", hint=f"remove it and run again: rm {target}")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = Request(address, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310  (of the catalog)
    try:
        with urlopen(request, timeout=60) as answer:  # noqa: S310
            _save(answer, part, have if answer.status == HTTPStatus.PARTIAL_CONTENT else 0)
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # else the part is whole
            raise
    note.write_text(json.dumps({"address": address, "bytes": part.stat().st_size, "sha256": sha256_of(part)}))
    part.replace(target)
    return target


def _save(answer: Any, part: Path, have: int) -> None:
    from tqdm import tqdm  # the bar of the hub's downloads too

    total = have + int(answer.headers["Content-Length"])
    with part.open("ab" if have else "wb") as file, tqdm(
        desc=part.stem, total=total, initial=have, unit="B", unit_scale=True
    ) as bar:  # fmt: skip
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    if part.stat().st_size != total:
        raise ModelError(
            f"the download of {part.stem} ended at {part.stat().st_size} of {total} bytes",
            hint="run the same command again: it goes on where it stopped",
        )
