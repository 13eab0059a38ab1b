"""What a source is, and what it gives: ScannedFile rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from pgimgsearch.sources.selection import LeftOut


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """One file of a source: ``path`` as stored, ``location`` to read it from, and its attributes.

    ``problem`` is set where the file could be named but not examined, and ``unlisted`` with it where it is a folder
    whose files are not known. Attributes that are None were not given, and leave what is stored as it is. ``data`` are
    its bytes, where the source is a stream that had to read them.
    """

    path: str
    location: str
    size: int | None = None
    modified_at: datetime | None = None
    given_key: str | None = None
    group_key: str | None = None
    caption: str | None = None
    metadata: dict[str, Any] | None = None
    problem: Exception | None = None
    unlisted: bool = False
    data: bytes | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """What identifies the image in its collection: the key that the source gave, else the path."""
        return self.path if self.given_key is None else self.given_key


class Part(Protocol):
    """A shard of a source."""

    def path(self, root: str) -> str:
        """Its own path as it is stored, where it fails as a whole."""

    def __call__(self, root: str) -> Iterator[ScannedFile]:
        """Its files."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where files come from. ``root`` is what paths are relative to; ``scope`` limits pruning to a folder in it.

    ``parts`` are its shards, where it consists of some: each gives its own files. ``whole`` is whether what it does not
    name is gone, within its scope: what pruning goes by. ``leaves_out`` tells of a path below the scope whether
    patterns exclude it.
    """

    label: str
    default_collection: str
    root: str | None
    files: Callable[[str], Iterator[ScannedFile]]
    count: Callable[[], int | None] = lambda: None
    scope: str | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    parts: Sequence[Part] = ()
    whole: bool = True
    leaves_out: Callable[[str], bool] | None = None
