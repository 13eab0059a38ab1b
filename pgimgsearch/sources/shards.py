"""Shards: many images in one file, read once from its beginning, as tars (webdataset) or Parquet.

An image's path is that of its shard and its name in it: ``shards/0001.tar/000017.jpg``.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from pgimgsearch.errors import PgImgSearchError, SourceError
from pgimgsearch.sources import webdataset
from pgimgsearch.sources.locations import is_url, is_web
from pgimgsearch.sources.object_store import filesystem, is_transient
from pgimgsearch.sources.rows import split
from pgimgsearch.sources.source import ScannedFile, Source
from pgimgsearch.sources.storable import UnstorableRow

Reader = Callable[[str], Iterator[tuple[ScannedFile, dict[str, Any]]]]  # location -> images, and what is said of them
TRIES, SECONDS_BETWEEN = 4, 1.0


def folder_of(location: str) -> str:
    """The folder or the prefix that a shard lies in."""
    return (location if is_url(location) else os.path.abspath(location)).rpartition("/")[0]  # noqa: PTH100


def shard_source(shards: Sequence["Shard"]) -> Source:
    """The images of shards that lie in one folder or below one prefix, one shard after the other."""
    folder = folder_of(shards[0].location)
    parts = [replace(shard, location=f"{folder}/{shard.location.rpartition('/')[2]}") for shard in shards]
    for shard in parts:
        if is_url(shard.location):
            if not is_web(shard.location):
                filesystem(shard.location)
        elif not os.path.isfile(shard.location):  # noqa: PTH113
            raise SourceError(f"there is no shard {shard.location}", hint="give a file that exists")
    label = parts[0].location if len(parts) == 1 else f"{parts[0].location} and {len(parts) - 1} more"

    def files(root: str) -> Iterator[ScannedFile]:
        return chain.from_iterable(shard(root) for shard in parts)

    return Source(label, folder.rpartition("/")[2] or "shards", folder, files, parts=parts, whole=False)


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard; called with a root, it gives its images."""

    location: str
    reader: Reader

    def path(self, root: str) -> str:
        """Its own path as it is stored, where it fails as a whole."""
        return self.location.removeprefix(root.rstrip("/") + "/") if root else self.location

    def __call__(self, root: str) -> Iterator[ScannedFile]:
        """All images. A shard that breaks is told as a file; a store that fails is tried again from there."""
        name, done, seen = self.path(root), 0, set[str]()
        for attempt in range(1, TRIES + 1):
            try:
                for number, (file, about) in enumerate(self.reader(self.location)):
                    if number >= done:
                        done += 1
                        unique = webdataset.inside(file.path)
                        while unique in seen:  # several members are called so, which is allowed
                            unique = f"{number:08}-{unique}"
                        seen.add(unique)
                        yield _placed(replace(file, path=unique), about, name, self.location)
            except PgImgSearchError:
                raise
            except Exception as error:  # whatever a store's or a format's library raises
                if is_url(self.location) and is_transient(error) and attempt < TRIES:
                    time.sleep(SECONDS_BETWEEN * attempt)
                    continue
                yield ScannedFile(name, self.location, problem=error, unlisted=True)
            return


def _placed(file: ScannedFile, about: Mapping[str, Any], name: str, location: str) -> ScannedFile:
    """An image below its shard with what is said of it; what cannot be said in JSON fails it by name."""
    placed = replace(file, path=f"{name}/{file.path}", location=f"{location}/{file.path}")
    try:
        own, rest = split({key: value for key, value in about.items() if key not in {"path", "url"}})
        rest |= {"url": about["url"]} if about.get("url") else {}
    except (ValueError, SourceError) as error:
        return replace(placed, problem=UnstorableRow(f"its metadata cannot be stored: {error}"), data=None)
    return replace(placed, metadata=rest or None, **own)
