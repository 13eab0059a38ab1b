"""The source that a name means, by its look: one line per kind of source, and one per format of shards."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from glob import glob, has_magic
from itertools import groupby
from pathlib import Path

from pgimgsearch.errors import SourceError
from pgimgsearch.sources import parquet, webdataset
from pgimgsearch.sources.folder import files_source, folder_source
from pgimgsearch.sources.listing import list_source
from pgimgsearch.sources.locations import check_named, is_url, is_web
from pgimgsearch.sources.object_store import prefix_source
from pgimgsearch.sources.selection import Selection
from pgimgsearch.sources.shards import Reader, Shard, folder_of, shard_source
from pgimgsearch.sources.source import ScannedFile, Source


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of Parquet that hold images and captions, where their names do not say so."""

    image_column: str | None = None
    caption_column: str | None = None


READERS: dict[str, Reader] = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), webdataset.samples), ".parquet": parquet.rows,
}  # fmt: skip


def parse_sources(
    places: Sequence[str], list_file: str | None, selection: Selection | None = None, columns: Columns | None = None
) -> list[Source]:  # fmt: skip
    """A source each; shards, or images, that are named one after the other are one, so that they are one run."""
    places = [file for place in places for file in _expanded(place)]
    for place in places:
        check_named(place)
    found: list[Source] = []
    for kind, group in groupby(places, _kind_of):
        together = list(group)
        if kind == "image":
            found.append(files_source([Path(place).resolve() for place in together]))
        else:
            found += [shards_of(together, columns)] if kind else [_source_of(place, selection) for place in together]
    return [*found, list_source(list_file)] if list_file else found


def shards_of(places: Sequence[str], columns: Columns | None = None) -> Source:
    """Shards that lie in one folder or below one prefix; ``columns`` are those of Parquet."""
    return shard_source([Shard(place, reader) for place in places if (reader := _reader_of(place, columns))])


def _expanded(place: str) -> list[str]:
    """What a pattern that the shell left alone names: photos/*.jpg."""
    if is_url(place) or not has_magic(place) or os.path.lexists(place):
        return [place]
    if not (found := sorted(glob(place, recursive=True))):  # noqa: PTH207  (absolute or relative, as it is written)
        raise SourceError(f"no file matches {place}", hint="give a folder, a file or a pattern of some that exist")
    return found


def _kind_of(place: str) -> str:
    """``image`` for a local file, the folder of a shard, or nothing: places of one kind are one source."""
    if _reader_of(place) is not None:
        return f"{folder_of(place)}/"
    return "image" if not is_url(place) and Path(place).is_file() else ""


def _reader_of(place: str, columns: Columns | None = None) -> Reader | None:
    reader = next((reader for ending, reader in READERS.items() if place.lower().endswith(ending)), None)
    return partial(parquet.rows, **asdict(columns)) if columns is not None and reader is parquet.rows else reader


def _source_of(place: str, selection: Selection | None) -> Source:
    if is_web(place):
        return Source(place, "web", None, lambda _: iter([ScannedFile(place, place)]), lambda: 1, whole=False)
    return prefix_source(place, selection) if is_url(place) else folder_source(Path(place), selection)
