"""The SQL functions of a revision, and the fingerprint of its tables.

The functions of the newest revision are ``sql/``. Those of a released one are frozen as a bundle, by
``python -m pgimgsearch.database.functions`` at the release.
"""

import hashlib
import itertools
import re
from pathlib import Path

from pgimgsearch.settings import package_folder

# Our own style, which a test holds: a header from "create or replace function" to "language".
HEADER = re.compile(
    r"^create or replace function (?P<name>imgsearch\.\w+)\s*"
    r"\((?P<arguments>.*?)\)\s*returns (?P<result>.*?)\s+language",
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
    """Where the functions of a released revision are frozen."""
    return package_folder("migrations") / "bundles" / f"{revision}.sql"


def functions_of(revision: str | None) -> str:
    """The SQL of the functions that belong to a revision; nothing before the first."""
    if revision is None:
        return ""
    return current_functions() if revision == head_revision() else bundle_path(revision).read_text()


def signatures(functions: str) -> dict[tuple[str, str], str]:
    """(name, argument types) of each function -> what ``create or replace`` cannot change, as pg_proc would say it.

    That is the names and types of its arguments, how many have defaults, and its result.
    """
    found = {}
    for match in HEADER.finditer(functions):
        arguments = [argument.strip() for argument in match["arguments"].split(",") if argument.strip()]
        plain = [re.sub(r"\s+default\s.*$", "", argument, flags=re.DOTALL) for argument in arguments]
        types = ", ".join(argument.split(None, 1)[1] for argument in plain)
        defaults = sum(short != long for short, long in zip(plain, arguments, strict=True))
        found[match["name"], types] = normalized(", ".join(plain), defaults, match["result"])
    return found


def normalized(arguments: str, defaults: int, result: str) -> str:
    """A signature in one spelling, without the schemas of types."""
    spelled = re.sub(r'(?:"[^"]*"|@?\w+@?)\.', "", f"{arguments}|{defaults}|{result}")
    return re.sub(r"\s+", "", spelled).lower()


def bodies(functions: str) -> dict[tuple[str, str], str]:
    """(name, argument types) of each function with a quoted body -> that body, as the server keeps it."""
    starts = [match.start() for match in HEADER.finditer(functions)] + [len(functions)]
    found = {}
    for start, end in itertools.pairwise(starts):
        body = re.search(r" as \$\$(.*?)\$\$;", functions[start:end], re.DOTALL)
        if body is not None:
            (signature,) = signatures(functions[start:end])
            found[signature] = body[1]
    return found


def schema_fingerprint(revision: str) -> str:
    """A hash of all that makes the tables of a revision; a database keeps it beside its revision."""
    hashed = hashlib.sha256()
    for path in sorted((package_folder("migrations") / "versions").glob("[0-9]*")):
        if path.name[:4] <= revision:
            hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def tables_path() -> Path:
    """Where columns, constraints, indexes and policies of the newest revision are listed."""
    return package_folder("migrations") / "tables.txt"


def freeze() -> Path:
    """Write ``sql/`` as the bundle of the newest revision."""
    path = bundle_path(head_revision())
    path.parent.mkdir(exist_ok=True)
    path.write_text(current_functions())
    return path


if __name__ == "__main__":
    print(freeze())
