"""The functions of each revision: ``sql/`` for the newest, a frozen bundle for every one."""

import itertools
import re
from pathlib import Path

from pgimgsearch.settings import package_folder

# Our own style, which a test holds: a header from "create or replace function" to "language".
HEADER = re.compile(
    r"^create or replace function (?P<name>imgsearch\.\w+)\s*\((?P<arguments>.*?)\)\s*returns .*?\s+language",
    re.MULTILINE | re.DOTALL,
)


def known_revisions() -> list[str]:
    """Every revision this program knows, oldest first; from the file names, so without Alembic."""
    return sorted(path.name[:4] for path in (package_folder("migrations") / "versions").glob("[0-9]*.py"))


def head_revision() -> str:
    """The revision this program needs."""
    return known_revisions()[-1]


def current_functions() -> str:
    """All of ``sql/``, in order."""
    return "\n".join(path.read_text() for path in sorted(package_folder("sql").glob("*.sql")))


def bundle_path(revision: str) -> Path:
    """Where the functions of a revision are frozen."""
    return package_folder("migrations") / "bundles" / f"{revision}.sql"


def functions_of(revision: str | None) -> str:
    """The SQL of the functions that belong to a revision; nothing before the first."""
    if revision is None:
        return ""
    return current_functions() if revision == head_revision() else bundle_path(revision).read_text()


def signatures(functions: str) -> dict[str, tuple[str, str]]:
    """Header of each function -> (name, argument types); the header holds all that ``replace`` cannot change."""
    found = {}
    for match in HEADER.finditer(functions):
        header = re.sub(r"\s+", " ", match.group(0)).removesuffix(" language")
        arguments = [a.strip() for a in match["arguments"].split(",") if a.strip()]
        types = [re.sub(r"\s+default\s.*$", "", a, flags=re.DOTALL).split(None, 1)[1] for a in arguments]
        found[header] = (match["name"], ", ".join(types))
    return found


def bodies(functions: str) -> dict[tuple[str, str], str]:
    """(name, argument types) of each function with a quoted body -> that body, as the server keeps it."""
    starts = [match.start() for match in HEADER.finditer(functions)] + [len(functions)]
    found = {}
    for start, end in itertools.pairwise(starts):
        body = re.search(r" as \$\$(.*?)\$\$;", functions[start:end], re.DOTALL)
        if body is not None:
            (signature,) = signatures(functions[start:end]).values()
            found[signature] = body[1]
    return found


def listing_path() -> Path:
    """Where columns, constraints, indexes and policies of the newest revision are listed."""
    return package_folder("migrations") / "tables.txt"


def freeze() -> Path:
    """Write ``sql/`` as the bundle of the newest revision."""
    path = bundle_path(head_revision())
    path.write_text(current_functions())
    return path


if __name__ == "__main__":
    print(freeze())
