"""Which files of a folder or prefix are taken, and what is left out, told by kind."""

from collections import Counter
from collections.abc import Iterable

from pathspec import GitIgnoreSpec

from pgimgsearch.errors import UsageError

# Thumbnails, bins and snapshots of NAS, Windows and macOS, and what photo libraries make of their originals.
DEFAULT_EXCLUDES = (
    "@eaDir/", r"\#recycle/", r"\#snapshot/", "$RECYCLE.BIN/", ".Trash*/", "System Volume Information/", "__MACOSX/",
    "**/*.photoslibrary/*", "!**/*.photoslibrary/originals/", "!**/*.photoslibrary/Masters/", "*.lrdata/",
)  # fmt: skip
KINDS = {
    "RAW": ".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .mef .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srw .x3f",
    "videos": ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv",
    "vector drawings": ".ai .cdr .eps .emf .pdf .ps .svg .svgz .wmf",
    "archives and tables": ".7z .gz .parquet .rar .tar .tgz .zip",
}
KIND_OF = {extension: kind for kind, extensions in KINDS.items() for extension in extensions.split()}
MOST_NAMED = 5  # extensions of a kind


class Selection:
    """Patterns as in .gitignore, relative to the folder that is ingested; without one to include, all are included."""

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        try:
            self._include = GitIgnoreSpec.from_lines(include) if include else None
            self._exclude = GitIgnoreSpec.from_lines([*DEFAULT_EXCLUDES, *exclude])
        except ValueError as error:
            raise UsageError(f"--include or --exclude: {error}", hint="write patterns as in .gitignore") from error

    def takes(self, path: str) -> bool:
        """Whether a file is taken."""
        return not self._exclude.match_file(path) and (self._include is None or self._include.match_file(path))

    def enters(self, folder: str) -> bool:
        """Whether a folder is looked into."""
        return not self._exclude.match_file(f"{folder}/")

    def leaves_out(self, path: str) -> bool:
        """Whether a file is not looked at, by its own name or by a folder above it."""
        above = path.split("/")[:-1]
        folders = ("/".join(above[: n + 1]) for n in range(len(above)))
        return not self.takes(path) or not all(map(self.enters, folders))


class LeftOut:
    """What a source left out while it was listed."""

    def __init__(self) -> None:
        self.extensions: Counter[str] = Counter()
        self.excluded: list[str] = []

    def add(self, extension: str) -> None:
        """A file that is no image, by its extension in lower case."""
        self.extensions[extension] += 1

    def exclude(self, path: str) -> None:
        """A file or folder that patterns exclude."""
        self.excluded.append(path)

    def clear(self) -> None:
        """It is listed again."""
        self.extensions.clear()
        self.excluded.clear()

    @property
    def total(self) -> int:
        """Files that are no images."""
        return self.extensions.total()

    def told(self) -> list[str]:
        """Sentences for people; none where nothing was left out."""
        said = []
        if self.total:
            kinds: dict[str, Counter[str]] = {}
            for extension, number in self.extensions.most_common():
                kinds.setdefault(KIND_OF.get(extension, "others"), Counter())[extension] = number
            parts = [f"{found.total()} {kind} ({_named(found)})" for kind, found in kinds.items()]
            said.append(f"{self.total} files are not images that can be read: {', '.join(parts)}")
        if self.excluded:
            more = f" and {len(self.excluded) - MOST_NAMED} more" if len(self.excluded) > MOST_NAMED else ""
            said.append(f"excluded: {', '.join(self.excluded[:MOST_NAMED])}{more}; others with --exclude '!PATTERN'")
        return said


def _named(found: Counter[str]) -> str:
    named = [f"{number} {extension or 'without extension'}" for extension, number in found.most_common(MOST_NAMED)]
    return ", ".join([*named, *(["..."] if len(found) > MOST_NAMED else [])])
