"""A share that goes away while its files are read: the run ends, instead of failing file by file."""

import os

from pgimgsearch.errors import SourceError
from pgimgsearch.ingest.item import Item
from pgimgsearch.sources.locations import is_url
from pgimgsearch.sources.source import Source

MOST_IN_A_ROW = 20


class Away:
    """Counts files that could not be read, one after the other."""

    def __init__(self, source: Source | None) -> None:
        local = source is not None and source.scope is not None and not is_url(source.scope)
        self._folder = source.scope if source is not None and local else None
        self._in_a_row, self._is_away = 0, False

    def sees(self, item: Item) -> bool:
        """Whether so many in a row could not be read, and their folder is gone, empty or broken."""
        self._in_a_row = self._in_a_row + 1 if item.failure is not None and not item.lasting else 0
        self._is_away = self._folder is not None and self._in_a_row >= MOST_IN_A_ROW and not _is_there(self._folder)
        return self._is_away

    def check(self) -> None:
        """Raise SourceError where it was seen, once what was read before is stored."""
        if self._is_away:
            raise SourceError(
                f"{self._folder} is away: the last {self._in_a_row} files could not be read",
                hint="what was read is stored; when it is back, run the same command again",
            )


def _is_there(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
