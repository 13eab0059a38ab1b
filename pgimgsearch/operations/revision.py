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

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import (
    DEFAULT_INDEX_SPEC,
    StoredModel,
    count_coverage,
    list_aliases,
)
from pgimgsearch.embeddings.registry import find_stored, get_stored
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
        raise UsageError(f"Alembic: {error}", hint=f"fix the environment of {config}: alembic heads") from error
    assert written is not None, "of one that is new there is a file"
    return Path(written.path)


def add_operation(connection: Connection, name: str) -> AddEmbeddingModel:
    """Add a model: as it is stored in the database, where that has it, else as the catalog says."""
    stored = find_stored(connection, name)
    if stored is None:
        fields = declaration(name)
        return AddEmbeddingModel(fields.pop("name"), **fields)
    return AddEmbeddingModel(stored.name, **_fields(stored))


def drop_operations(connection: Connection, name: str, freed: Container[str]) -> list[MigrateOperation]:
    """Drop a model; the downgrade brings its empty table back, and its index settings.

    ``freed`` are aliases that move before that. Raises ModelError where another one needs it.
    """
    stored = get_stored(connection, name)
    needed = [alias for alias, model in list_aliases(connection).items() if model == stored.name and alias not in freed]
    if needed:
        raise ModelError(
            f"{stored.name} is in use by alias {', '.join(needed)}",
            hint=f"switch it in the same revision: --switch {needed[0]}=OTHER",
        )
    wanted, plain = stored.index_spec, DEFAULT_INDEX_SPEC
    request = [] if wanted == plain else [SetIndex(stored.name, previous=wanted, **plain)]
    return [*request, DropEmbeddingModel(stored.name, **_fields(stored))]


def switch_operation(connection: Connection, alias: str, name: str) -> SwitchAlias:
    """Switch an alias to a model that is filled; raises ModelError where it is not."""
    stored = get_stored(connection, name)
    missing = count_coverage(connection, stored).missing
    if missing:
        raise ModelError(
            f"{stored.name} misses {missing} contents", hint=f"embed them first: pgimgsearch models fill {stored.name}"
        )
    return SwitchAlias(alias, stored.name, previous=list_aliases(connection).get(alias))


def index_operation(connection: Connection, name: str, m: int, ef_construction: int) -> SetIndex:
    """Record another index of a model, which may be one that an operation before adds."""
    stored = find_stored(connection, name)
    previous = None if stored is None else stored.index_spec
    return SetIndex(stored.name if stored else name, previous=previous, m=m, ef_construction=ef_construction)


def _fields(stored: StoredModel) -> dict[str, Any]:
    """Raises ModelError for a model that a migration cannot bring back."""
    if stored.full_dim is not None:
        raise ModelError(
            f"{stored.name} is fitted on vectors, which a migration does not hold",
            hint=f"it goes by commands: pgimgsearch models add {stored.name.rpartition('@')[0]} --dim {stored.dim}, "
            f"pgimgsearch models remove {stored.name}",
        )
    return {name: getattr(stored, name) for name in FIELDS}
