"""Write a revision into a project's own Alembic environment."""

from argparse import Namespace
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from alembic.autogenerate.api import render_python_code
from alembic.config import Config
from alembic.operations.ops import DowngradeOps, MigrateOperation, UpgradeOps
from alembic.script import ScriptDirectory
from alembic.util import CommandError, rev_id

from pgimgsearch.database import coverage
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.operations.alembic import (
    FIELDS,
    AddEmbeddingModel,
    DropEmbeddingModel,
    SetIndex,
    SwitchAlias,
    declaration,
)


def write(config: Path, message: str, operations: Sequence[MigrateOperation]) -> Path:
    """Write a revision after the head; its downgrade is the reverse, backwards. Returns the file."""
    if not config.is_file():
        raise UsageError(
            f"there is no {config} here", hint="run it in your project's folder, or name the file: --config alembic.ini"
        )
    try:
        scripts = ScriptDirectory.from_config(Config(str(config), cmd_opts=Namespace(quiet=True)))
        upgrades, downgrades = UpgradeOps(list(operations)), DowngradeOps([op.reverse() for op in reversed(operations)])
        written = scripts.generate_revision(
            rev_id(), message, head="head", refresh=True, upgrades=render_python_code(upgrades),
            downgrades=render_python_code(downgrades), imports="",
        )  # fmt: skip
    except CommandError as error:
        raise UsageError(f"Alembic: {error}", hint=f"mend the environment of {config}: alembic heads") from error
    assert written is not None, "of one that is new there is a file"
    return Path(written.path)


def adding(connection: Connection, name: str) -> AddEmbeddingModel:
    """Add a model: as it is stored in the database, where that has it, else as the catalog says."""
    stored = store.find_model(connection, name)
    if stored is None:
        fields = declaration(name)
        return AddEmbeddingModel(fields.pop("name"), **fields)
    return AddEmbeddingModel(stored.name, **_fields(stored))


def dropping(connection: Connection, name: str, freed: Container[str]) -> list[MigrateOperation]:
    """Drop a model; the downgrade brings its empty table back, and the wish for its index.

    ``freed`` are aliases that move before that. Raises ModelError where another one needs it.
    """
    stored = store.get_model(connection, name)
    needed = [
        alias for alias, model in store.aliases(connection).items() if model == stored.name and alias not in freed
    ]
    if needed:
        raise ModelError(
            f"{stored.name} is in use by alias {', '.join(needed)}",
            hint=f"switch it in the same revision: --switch {needed[0]}=OTHER",
        )
    wanted, plain = stored.index_wanted, store.PLAIN_INDEX
    wish = [] if wanted == plain else [SetIndex(stored.name, was=wanted, **plain)]
    return [*wish, DropEmbeddingModel(stored.name, **_fields(stored))]


def switching(connection: Connection, alias: str, name: str) -> SwitchAlias:
    """Switch an alias to a model that is filled; raises ModelError where it is not."""
    stored = store.get_model(connection, name)
    missing = coverage.count(connection, stored).missing
    if missing:
        raise ModelError(
            f"{stored.name} misses {missing} contents", hint=f"embed them first: pgimgsearch models fill {stored.name}"
        )
    return SwitchAlias(alias, stored.name, was=store.aliases(connection).get(alias))


def wishing(connection: Connection, name: str, m: int, ef_construction: int) -> SetIndex:
    """Wish for another index of a model, which may be one that an operation before adds."""
    stored = store.find_model(connection, name)
    was = None if stored is None else stored.index_wanted
    return SetIndex(stored.name if stored else name, was=was, m=m, ef_construction=ef_construction)


def _fields(stored: store.StoredModel) -> dict[str, Any]:
    """Raises ModelError for a model that a migration cannot bring back."""
    if stored.full_dim is not None:
        raise ModelError(
            f"{stored.name} is fitted on vectors, which a migration does not hold",
            hint=f"it goes by commands: pgimgsearch models add {stored.name.rpartition('@')[0]} --dim {stored.dim}, "
            f"pgimgsearch models remove {stored.name}",
        )
    same = {name: getattr(stored, name) for name in FIELDS if name != "unit_length"}
    return same | {"unit_length": stored.normalize}
