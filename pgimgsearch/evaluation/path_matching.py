"""How truth files name images: by path, file name, or file name without its ending, in either form of accents."""

from collections.abc import Iterable
from pathlib import PurePath
from unicodedata import normalize

from pgimgsearch.errors import SourceError


class Names:
    """Finds the file that a truth means, among absolute paths."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = set()
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in dict.fromkeys(paths):
            self._paths.add(path)
            pure = PurePath(normalize("NFC", path))
            self._by_name.setdefault(pure.name, []).append(path)
            self._by_stem.setdefault(pure.stem, []).append(path)

    def find(self, name: str) -> str | None:
        """The path that is named, or whose end is; with its ending, or else without. None where there is no such.

        Raises SourceError where it may be several.
        """
        if name in self._paths:
            return name
        pure = PurePath(normalize("NFC", name))
        for known in (self._by_name, self._by_stem):
            found = [p for p in known.get(pure.name, []) if _ends_with(PurePath(normalize("NFC", p)), pure)]
            if len(found) > 1:
                raise SourceError(f"{name} may be {found[0]} or {found[1]}", hint="name it by more of its path")
            if found:
                return found[0]
        return None


def _ends_with(path: PurePath, end: PurePath) -> bool:
    """Whether the folders of a name are the last ones of a path."""
    folders = end.parent.parts
    return not folders or path.parent.parts[-len(folders) :] == folders
