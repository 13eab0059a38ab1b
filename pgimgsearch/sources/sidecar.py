"""Captions, metadata and groups from beside the images."""

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgimgsearch.errors import SourceError
from pgimgsearch.sources.locations import is_url
from pgimgsearch.sources.rows import COLUMNS, Row, parse_rows, read_text, split
from pgimgsearch.sources.source import ScannedFile

MOST_NAMED = 5


class Sidecar:
    """Rows about images, by the names that they give them; it notes which rows and images found each other."""

    def __init__(self, path: Path, folders: Sequence[str] = ()) -> None:
        """``folders`` are those that are ingested, which names may be relative to."""
        self.path, self._folders = path, [folder.rstrip("/") for folder in folders]
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._unmatched: dict[str, None] = {}  # in order
        self._without: list[str] = []  # images
        self._lower: dict[str, str | None] = {}  # None where two rows differ in case alone
        for row in parse_rows(read_text(path), str(path)):
            self._add(row)

    def _add(self, row: Row) -> None:
        hint = "it needs a column path (or file_name, filename, image) and one more"
        if row.problem is not None:
            raise SourceError(str(row.problem), hint="mend that row")
        named = {COLUMNS.get(key, key): value for key, value in row.values.items()}
        if not named.get("path") or len(named) < 2:
            raise SourceError(f"{self.path}, row {row.number} has no path, or nothing else", hint=hint)
        name = _normal(str(named.pop("path")))
        try:
            split(named)
        except ValueError as error:
            raise SourceError(f"{self.path}, row {row.number}: {error}", hint="mend that row") from error
        self._rows.setdefault(name, []).append(named)
        self._unmatched[name] = None
        lower = name.casefold()
        self._lower[lower] = name if self._lower.get(lower, name) == name else None

    def rows(self, file: ScannedFile) -> list[dict[str, Any]]:
        """What is said of an image."""
        names = list(dict.fromkeys(self._names(file)))
        found = next((name for name in names if name in self._rows), None)
        if found is None:
            found = next((same for name in names if (same := self._lower.get(name.casefold()))), None)
        if found is None:
            self._without.append(file.path)
            return []
        self._unmatched.pop(found, None)
        return self._rows[found]

    def _names(self, file: ScannedFile) -> Iterator[str]:
        """What an image may be called: its path, one from the folder that is ingested or from above it, all of it."""
        location = _normal(file.location)
        yield _normal(file.path)
        for folder in map(_normal, self._folders):
            if location.startswith(f"{folder}/"):
                inside = location[len(folder) + 1 :]
                yield from (inside, f"{folder.rpartition('/')[2]}/{inside}")
        yield location

    def told(self) -> list[str]:
        """Which rows and images are left; raises SourceError where none found each other."""
        if len(self._unmatched) == len(self._rows) and self._rows:
            raise SourceError(
                f"no row of {self.path} names an image: {_some(self._unmatched)}",
                hint=f"names are relative to the folder, as {_some(self._without[:1]) or 'a/b.jpg'}",
            )
        said = [f"{len(self._unmatched)} rows of {self.path} match no image: {_some(self._unmatched)}"]
        said += [f"{len(self._without)} images have no row in {self.path}: {_some(self._without)}"]
        return [one for one in said if not one.startswith("0 ")]


def _normal(name: str) -> str:
    """A name as names are compared: NFC, slashes, no ``./``."""
    plain = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    return plain if is_url(plain) else posixpath.normpath(plain)


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
        texts = [str(row["caption"]) for row in captions.rows(file) if row.get("caption")]
        yield replace(file, caption="\n".join(dict.fromkeys(texts))) if texts else file


def with_metadata(files: Iterable[ScannedFile], attributes: Sidecar) -> Iterator[ScannedFile]:
    """Metadata and groups of a sidecar; the last row of a path counts."""
    for file in files:
        found = attributes.rows(file)
        if not found:
            yield file
            continue
        own, rest = split(found[-1])
        known = {key: value for key, value in own.items() if value is not None and key != "caption"}
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
