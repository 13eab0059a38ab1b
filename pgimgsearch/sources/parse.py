"""What a user names as sources, by the look of each name."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from pgimgsearch.errors import UsageError
from pgimgsearch.sources import shards
from pgimgsearch.sources.object_store import prefix_source
from pgimgsearch.sources.source import Source, folder_source, is_url, list_source, url_source


def parse_sources(places: Sequence[str], list_file: str | None) -> list[Source]:
    """A source each; shards that lie beside each other are one, so that the pipeline does not run dry between them."""
    for place in places:
        if is_url(place) and "@" in place.partition("://")[2].partition("/")[0] and "abfs" not in place:
            raise UsageError(
                "a URL with a user name in it would be stored and shown",
                hint="leave it out, and put it into the settings of the store (AWS_PROFILE, FSSPEC_* and the like)",
            )
    found: list[Source] = []
    for folder, group in groupby(places, lambda place: shards.folder_of(place) if shards.is_shard(place) else None):
        together = list(group)
        found += [shards.shard_source(together)] if folder is not None else map(_source_of, together)
    return [*found, list_source(list_file)] if list_file else found


def _source_of(place: str) -> Source:
    if place.startswith(("http://", "https://")):
        return url_source(place)
    return prefix_source(place) if is_url(place) else folder_source(Path(place))
