"""Images that were read although something of their files is odd: counted by what it is, and named."""

from pgimgsearch.ingest.item import Item

NAMED = 3


class Oddities:
    """What a run has met."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, item: Item) -> None:
        """Take in what was odd of an image."""
        for note in item.image.notes if item.image is not None else ():
            count, names = self._found.get(note, (0, []))
            self._found[note] = (count + 1, [*names, item.file.path][:NAMED])

    def told(self) -> list[str]:
        """For people, a line for each kind."""
        return [
            f"{count} {'image was' if count == 1 else 'images were'} read although {note}: {', '.join(names)}"
            f"{', ...' if count > len(names) else ''}"
            for note, (count, names) in self._found.items()
        ]
