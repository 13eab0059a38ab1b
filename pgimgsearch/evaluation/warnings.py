"""What was odd about a truth: counted, and named as far as that helps."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

NAMED = 5
LONGEST = 200  # characters of a name


@dataclass(slots=True)
class Warnings:
    """Oddities that do not stop an evaluation, in the order in which they were found."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, named: Iterable[object]) -> None:
        """Note things of one kind; none, and nothing is said."""
        # paths may be any bytes
        names = [_short(os.fsencode(str(name)).decode("utf-8", "backslashreplace")) for name in named]
        if names:
            self.found.setdefault(_short(what), []).extend(names)

    def rows(self) -> list[dict[str, Any]]:
        """A row a kind: how many, and the first of them by name."""
        return [{"what": what, "count": len(names), "named": names[:NAMED]} for what, names in self.found.items()]

    def told(self) -> list[str]:
        """The same in words."""
        return [
            f"{row['what']}: {row['count']} ({', '.join(row['named'])}{', ...' if row['count'] > NAMED else ''})"
            for row in self.rows()
        ]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
