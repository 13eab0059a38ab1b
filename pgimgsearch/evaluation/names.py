"""How truth files name pictures: by path, by file name, or by file name without its ending."""

from collections.abc import Iterable
from pathlib import PurePath

from pgimgsearch.errors import SourceError


class Names:
    """Finds what a truth means among paths; places are those of the paths given."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = list(paths)
        self._by_path = {path: place for place, path in enumerate(self._paths)}
        self._by_name: dict[str, list[int]] = {}
        for place, path in enumerate(self._paths):
            pure = PurePath(path)
            for name in {pure.name, pure.stem}:
                self._by_name.setdefault(name, []).append(place)

    def find(self, name: str, *folders: str) -> int | None:
        """The place of what is named, perhaps relative to one of the folders; None where there is no such.

        Raises SourceError where it may be several.
        """
        for path in (name, *(str(PurePath(folder, name)) for folder in folders)):
            if path in self._by_path:
                return self._by_path[path]
        found = self._by_name.get(PurePath(name).name, [])
        if len(found) > 1:
            raise SourceError(
                f"{name} may be {self._paths[found[0]]} or {self._paths[found[1]]}", hint="name it by its path"
            )
        return found[0] if found else None
