"""The source that a name means, by its look: one line per kind of source, and one per format of shards."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from pgimgsearch.sources import parquet, webdataset
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.listing import list_source
from pgimgsearch.sources.locations import check_named, is_url, is_web
from pgimgsearch.sources.object_store import prefix_source
from pgimgsearch.sources.shards import Reader, Shard, folder_of, shard_source
from pgimgsearch.sources.source import ScannedFile, Source

READERS: dict[str, Reader] = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), webdataset.samples), ".parquet": parquet.rows,
}  # fmt: skip


def parse_sources(places: Sequence[str], list_file: str | None) -> list[Source]:
    """A source each; shards that lie beside each other are one, so that the pipeline does not run dry between them."""
    for place in places:
        check_named(place)
    found: list[Source] = []
    for folder, group in groupby(places, lambda place: folder_of(place) if _reader_of(place) else None):
        together = list(group)
        found += [shards_of(together)] if folder is not None else map(_source_of, together)
    return [*found, list_source(list_file)] if list_file else found


def shards_of(places: Sequence[str]) -> Source:
    """Shards that lie in one folder or below one prefix."""
    return shard_source([Shard(place, reader) for place in places if (reader := _reader_of(place))])


def _reader_of(place: str) -> Reader | None:
    return next((reader for ending, reader in READERS.items() if place.lower().endswith(ending)), None)


def _source_of(place: str) -> Source:
    if is_web(place):
        return Source(place, "web", None, lambda _: iter([ScannedFile(place, place)]), lambda: 1, whole=False)
    return prefix_source(place) if is_url(place) else folder_source(Path(place))
