"""Captions, metadata and groups from beside the images."""

import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgimgsearch.errors import SourceError
from pgimgsearch.sources.locations import LONGEST, is_url
from pgimgsearch.sources.rows import COLUMNS, Row, parse_rows, read_text, split
from pgimgsearch.sources.source import ScannedFile

MOST_NAMED = 5
TIERS = 3  # how sure a name is, by where it begins


class Sidecar:
    """Rows about images, by the names that they give them; it notes which rows and images found each other."""

    def __init__(self, path: Path, folders: Sequence[str] = (), column: str | None = None) -> None:
        """``folders`` are those that are ingested, which names may be relative to; ``column`` is one that is needed."""
        self.path, self._folders = path, [folder.rstrip("/") for folder in folders if folder]
        self._rows: dict[str, list[dict[str, Any]]] = {}  # by their names as they are written
        self._alike: tuple[dict[str, set[str]], ...] = ({}, {}, {})  # for each form of names, the rows of one
        self._unmatched: dict[str, None] = {}  # in order
        self._without: list[str] = []  # images
        self._claims: dict[str, str] = {}  # row -> the location that took it
        self._shared: list[str] = []  # images of which a row may mean several
        self._listed: dict[tuple[str, int], Counter[str]] = {}
        self._refused: list[str] = []  # rows, with the reason
        self._repeated: dict[str, None] = {}  # images of which only the last row counts, in order
        for row in parse_rows(read_text(path), str(path)):
            try:
                self._add(row)
            except (ValueError, SourceError) as error:
                self._refused.append(f"row {row.number}: {error}")
        if not self._rows:
            why = f"{len(self._refused)} cannot be read: {_some(self._refused)}" if self._refused else "there is none"
            raise SourceError(
                f"no row of {path} can be used: {why}",
                hint="it needs a column path (or file_name, filename, image) and one more",
            )

        if column is not None and not any(column in one for rows in self._rows.values() for one in rows):
            others = sorted({name for rows in self._rows.values() for one in rows for name in one})
            raise SourceError(
                f"{path} has no column {column}: {_some(others)}", hint=f"name it {column}, text or title"
            )

    def _add(self, row: Row) -> None:
        if row.problem is not None:
            raise row.problem
        named = {COLUMNS.get(key, key): value for key, value in row.values.items()}
        if not named.get("path") or len(named) < 2:
            raise ValueError("it has no path, or nothing else")
        if len(path := str(named.pop("path"))) > LONGEST:
            raise ValueError(f"its path has {len(path)} characters")
        name = _written(path)
        split(named)
        self._rows.setdefault(name, []).append(named)
        self._unmatched[name] = None
        for form, alike in zip(FORMS, self._alike, strict=True):
            alike.setdefault(form(name), set()).add(name)

    def row(self, file: ScannedFile) -> dict[str, Any] | None:
        """What the last row says of an image, where several do."""
        found = self.rows(file)
        if len(found) > 1:
            self._repeated[file.path] = None
        return found[-1] if found else None

    def rows(self, file: ScannedFile) -> list[dict[str, Any]]:
        """What is said of an image. A row is of one image: of those that it may mean by its name, none takes it."""
        found = self._find(file)
        rival = None if found is None else self._rival(*found, file)
        if found is None or (rival is not None and rival < found[0]):  # the row is the other's
            self._without.append(file.path)
            return []
        _, names = found
        for name in names:
            self._unmatched.pop(name, None)
        row = next(iter(names))
        if len(names) > 1 or rival is not None or self._claims.setdefault(row, file.location) != file.location:
            self._shared.append(file.path)
            return []
        return self._rows[row]

    def _find(self, file: ScannedFile) -> tuple[int, set[str]] | None:
        """How sure rows are of an image, 0 the surest, and their names: exactly so, in normal form, but for case."""
        for number, (form, alike) in enumerate(zip(FORMS, self._alike, strict=True)):
            for tier, name in self._names(file):
                if (found := alike.get(form(name))) is not None:
                    return number * TIERS + tier, found
        return None

    def _names(self, file: ScannedFile) -> Iterator[tuple[int, str]]:
        """What an image may be called, the surest names first.

        From the folder that is ingested, and all of it; from the collection's root; with the folder's name in front.
        """
        inside = [
            (folder, file.location[len(folder) + 1 :])
            for folder in self._folders
            if file.location.startswith(f"{folder}/")
        ]
        yield from ((0, name) for _, name in inside)
        yield 0, file.location
        yield 1, file.path
        yield from ((2, f"{folder.rpartition('/')[2]}/{name}") for folder, name in inside)

    def _rival(self, sure: int, names: set[str], file: ScannedFile) -> int | None:
        """How sure another file that is ingested is meant by a row, if it is as sure as this one; of local files."""
        if is_url(file.location) or not os.path.lexists(file.location):
            return None
        places: list[tuple[int, str]] = []
        for name in names:
            places += ((0, os.path.join(folder, name)) for folder in self._folders)  # noqa: PTH118  (an absolute one wins)
            if file.location.endswith(f"/{file.path}"):
                places.append((1, os.path.join(file.location.removesuffix(file.path), name)))  # noqa: PTH118
            places += ((2, f"{posixpath.dirname(folder)}/{name}") for folder in self._folders)
        rivals = [
            place_sure for place_sure, place in places if place_sure <= sure and self._is_another(place, file.location)
        ]
        if sure >= TIERS and self._has_namesake(file.location, sure // TIERS):
            rivals.append(sure)
        return min(rivals, default=None)

    def _is_another(self, place: str, location: str) -> bool:
        """Whether there is another file there that is ingested, too."""
        if not any(place.startswith(f"{folder}/") for folder in self._folders) or not os.path.lexists(place):
            return False
        return not os.path.samestat(os.lstat(place), os.lstat(location))

    def _has_namesake(self, location: str, form: int) -> bool:
        """Whether a file, or a folder above it, is called the same as another one beside it in a form of names."""
        while any(location.startswith(f"{folder}/") for folder in self._folders):
            folder, name = os.path.split(location)
            if (folder, form) not in self._listed:
                self._listed[folder, form] = Counter(FORMS[form](one) for one in os.listdir(folder))  # noqa: PTH208
            if self._listed[folder, form][FORMS[form](name)] > 1:
                return True
            location = folder
        return False

    def refused(self) -> list[str]:
        """How many rows cannot be read, for people; an empty list for none."""
        count = len(self._refused)
        return [f"{count} rows of {self.path} are left out: {_some(self._refused)}"] if count else []

    def told(self) -> list[str]:
        """Which rows and images are left; raises SourceError where none found each other."""
        if len(self._unmatched) == len(self._rows) and self._rows:
            raise SourceError(
                f"no row of {self.path} names an image: {_some(self._unmatched)}",
                hint=f"names are relative to the folder, as {_some(self._without[:1]) or 'a/b.jpg'}",
            )
        said = [f"{len(self._unmatched)} rows of {self.path} match no image: {_some(self._unmatched)}"]
        said += [f"{len(self._without)} images have no row in {self.path}: {_some(self._without)}"]
        said += [f"{len(self._shared)} images share a row of {self.path} with others, which none took by it: "
                 f"{_some(self._shared)}"]  # fmt: skip
        said += [f"{len(self._repeated)} images have several rows in {self.path}, of which the last counts: "
                 f"{_some(self._repeated)}"]  # fmt: skip
        return [one for one in said if not one.startswith("0 ")]


def _normal(name: str) -> str:
    """A name as names are compared: NFC, slashes, no ``./``."""
    plain = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    return plain if is_url(plain) else posixpath.normpath(plain)


def _written(name: str) -> str:
    """A name as it is written, but for ``./``."""
    return name if is_url(name) else posixpath.normpath(name)


def _folded(name: str) -> str:
    return _normal(name).casefold()


FORMS: Sequence[Callable[[str], str]] = (_written, _normal, _folded)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join([*listed[:MOST_NAMED], *(["..."] if len(listed) > MOST_NAMED else [])])


def refinements(
    captions: Sidecar | None, attributes: Sidecar | None, group_by: str | None
) -> Callable[[Iterator[ScannedFile]], Iterator[ScannedFile]]:
    """What adds captions, metadata and groups to scanned files, in the order in which one may need the other."""

    def refine(files: Iterator[ScannedFile]) -> Iterator[ScannedFile]:
        if captions is not None:
            files = with_captions(files, captions)
        if attributes is not None:
            files = with_metadata(files, attributes)
        return with_groups(files, group_by) if group_by else files

    return refine


def with_captions(files: Iterable[ScannedFile], captions: Sidecar) -> Iterator[ScannedFile]:
    """Captions of a sidecar; several of one image are joined by new lines."""
    for file in files:
        texts = [text for row in captions.rows(file) if (text := split(row)[0].get("caption"))]
        yield replace(file, caption="\n".join(dict.fromkeys(texts))) if texts else file


def with_metadata(files: Iterable[ScannedFile], attributes: Sidecar) -> Iterator[ScannedFile]:
    """Metadata and groups of a sidecar; the last row of a path counts."""
    for file in files:
        row = attributes.row(file)
        if row is None:
            yield file
            continue
        own, rest = split(row)
        known = {key: value for key, value in own.items() if value is not None}
        if file.caption is not None:  # from a file of captions, or beside the image
            known.pop("caption", None)
        yield replace(file, metadata=(file.metadata or {}) | rest, **known)


def with_groups(files: Iterable[ScannedFile], group_by: str) -> Iterator[ScannedFile]:
    """Group by ``folder``, by a pattern whose first group is searched for in the path, or by a metadata key."""
    found = pattern(group_by) if "(" in group_by else None
    for file in files:
        if group_by == "folder":
            key: object = str(Path(file.path).parent)
        elif found:
            match = found.search(file.path)
            key = match.group(1) if match else None
        else:
            key = (file.metadata or {}).get(group_by)
        yield replace(file, group_key=str(key)) if key not in (None, "") else file


def pattern(text: str) -> re.Pattern[str]:
    """A pattern over paths with a group in it; raises SourceError for any other."""
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise SourceError(f"{text} is no pattern: {error}", hint=r"for example '(\d+)_\d+\.jpg'") from error
    if compiled.groups == 0:
        raise SourceError(f"the pattern {text} has no group", hint=r"for example '(\d+)_\d+\.jpg'")
    return compiled
