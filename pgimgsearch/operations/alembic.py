"""Models, aliases and indexes in a project's own Alembic migrations, and hooks that leave our schema to us.

Import this module in ``env.py``: that registers ``op.add_embedding_model``, ``op.drop_embedding_model``,
``op.switch_alias`` and ``op.set_index``. Each runs one SQL function of the schema ``imgsearch``, so that they work
offline (``alembic upgrade --sql``) too, and other tools for migrations can call the same functions.
"""

from collections.abc import Mapping
from typing import Any

import pgvector.sqlalchemy  # noqa: F401  SQLAlchemy reads vector columns from then on
import sqlalchemy as sa
from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations

from pgimgsearch.errors import ModelError, SchemaError
from pgimgsearch.models import lookup

SCHEMA = "imgsearch"
FIELDS = ("dim", "backend", "checkpoint", "output", "storage", "revision", "has_text", "near", "licence", "normalize")


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """For ``context.configure(include_name=...)``: do not even look at our schema."""
    return (name if type_ == "schema" else parent_names.get("schema_name")) != SCHEMA


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:  # noqa: ARG001
    """For ``context.configure(include_object=...)``: leave what a project declares of our tables to us.

    It may, so that its foreign keys can point at ``imgsearch.image``.
    """
    table = object_ if type_ == "table" else getattr(object_, "table", None)
    return getattr(table, "schema", None) != SCHEMA


def render_item(type_: str, object_: Any, autogen_context: AutogenContext) -> str | bool:
    """For ``context.configure(render_item=...)``: write vector types with the import that they need."""
    if type_ == "type" and type(object_).__module__.startswith("pgvector.sqlalchemy"):
        autogen_context.imports.add("import pgvector.sqlalchemy")
        dim = getattr(object_, "dim", None) or getattr(object_, "length", None)  # the latter of BIT
        return f"pgvector.sqlalchemy.{type(object_).__name__}({dim or ''})"
    return False


def declaration(name: str) -> dict[str, Any]:
    """What a migration says of a model of the catalog; raises ModelError where only loading it tells its dimensions."""
    spec = lookup.resolve(name)
    if not spec.dim or spec.output == "auto":
        raise ModelError(
            f"only loading {name} tells how many dimensions it has",
            hint=f"add it to a database of your own, and name that with --db: pgimgsearch models add {name}",
        )
    return {
        "name": spec.name, "dim": spec.dim, "backend": spec.backend, "checkpoint": spec.checkpoint,
        "output": spec.output, "storage": spec.storage, "revision": spec.revision, "has_text": spec.text,
        "near": spec.near, "licence": spec.licence, "normalize": spec.normalize,
    }  # fmt: skip


@Operations.register_operation("add_embedding_model")
class AddEmbeddingModel(MigrateOperation):
    """Declare a model and make its empty table; ``pgimgsearch models fill`` embeds what is stored."""

    def __init__(self, name: str, **fields: Any) -> None:
        self.name, self.fields = name, fields

    @classmethod
    def add_embedding_model(cls, operations: Operations, name: str, **fields: Any) -> None:
        """Of a model of the catalog the name is enough; else give dim, backend, checkpoint and output too."""
        unknown = set(fields) - set(FIELDS)
        if unknown:
            raise TypeError(f"add_embedding_model takes no {', '.join(sorted(unknown))}")
        operations.invoke(cls(name, **fields))

    def reverse(self) -> MigrateOperation:
        """Its table goes, with all vectors."""
        return DropEmbeddingModel(self.name, **self.fields)


@Operations.register_operation("drop_embedding_model")
class DropEmbeddingModel(MigrateOperation):
    """Drop a model with its table, view, index and cached texts; refused while an alias or a view of yours needs it."""

    def __init__(self, name: str, **fields: Any) -> None:
        self.name, self.fields = name, fields

    @classmethod
    def drop_embedding_model(cls, operations: Operations, name: str) -> None:
        """By its name."""
        operations.invoke(cls(name))

    def reverse(self) -> MigrateOperation:
        """The table comes back empty: ``pgimgsearch models fill``."""
        return AddEmbeddingModel(self.name, **self.fields)


@Operations.register_operation("switch_alias")
class SwitchAlias(MigrateOperation):
    """Point an alias at a model that has all stored images, or drop it with None."""

    def __init__(
        self, alias: str, model: str | None, *, allow_missing: int | None = 0, previous: str | None = None
    ) -> None:
        self.alias, self.model, self.allow_missing, self.previous = alias, model, allow_missing, previous

    @classmethod
    def switch_alias(
        cls, operations: Operations, alias: str, model: str | None, *, allow_missing: int | None = 0
    ) -> None:
        """Refused where the model misses more than ``allow_missing`` contents; None allows any number."""
        operations.invoke(cls(alias, model, allow_missing=allow_missing))

    def reverse(self) -> MigrateOperation:
        """Switch back, also where images were added meanwhile, as a rollback must not wait for them."""
        return SwitchAlias(self.alias, self.previous, allow_missing=None, previous=self.model)


@Operations.register_operation("set_index")
class SetIndex(MigrateOperation):
    """Record which index a model should have; ``pgimgsearch index build`` builds it, outside of any transaction."""

    def __init__(self, model: str, *, previous: Mapping[str, Any] | None = None, **spec: Any) -> None:
        self.model, self.spec, self.previous = model, spec, previous or {}

    @classmethod
    def set_index(
        cls, operations: Operations, model: str, *, method: str = "hnsw", m: int = 16, ef_construction: int = 64
    ) -> None:
        """``method`` is hnsw, hnsw-binary or none."""
        operations.invoke(cls(model, method=method, m=m, ef_construction=ef_construction))

    def reverse(self) -> MigrateOperation:
        """The previous settings, or those of a new model."""
        return SetIndex(self.model, previous=self.spec, **self.previous)


@Operations.implementation_for(AddEmbeddingModel)
def _add(operations: Operations, operation: AddEmbeddingModel) -> None:
    fields = operation.fields
    if not {"dim", "backend", "checkpoint", "output"} <= fields.keys():
        fields = declaration(operation.name) | fields
    if "normalize" in fields:  # a keyword of SQL, where it cannot name a parameter
        fields = {name: value for name, value in fields.items() if name != "normalize"} | {
            "normalized": fields["normalize"]
        }
    _call(operations, "add_model", {"name": operation.name} | fields)


@Operations.implementation_for(DropEmbeddingModel)
def _drop(operations: Operations, operation: DropEmbeddingModel) -> None:
    _call(operations, "drop_model", {"model": operation.name})


@Operations.implementation_for(SwitchAlias)
def _switch(operations: Operations, operation: SwitchAlias) -> None:
    _call(
        operations, "switch_alias",
        {"alias": operation.alias, "model": operation.model, "allow_missing": operation.allow_missing},
    )  # fmt: skip


@Operations.implementation_for(SetIndex)
def _index(operations: Operations, operation: SetIndex) -> None:
    _call(operations, "set_index", {"model": operation.model} | operation.spec)


def _call(operations: Operations, function: str, arguments: Mapping[str, Any]) -> None:
    context = operations.get_context()
    if not context.as_sql:
        found = operations.get_bind().scalar(
            sa.text("select to_regproc(:name)").bindparams(name=f"imgsearch.{function}")
        )
        if found is None:
            raise SchemaError(
                "the database is not prepared for pgimgsearch, or for an older release",
                hint="run before the migrations: pgimgsearch --db URL db upgrade",
            )
    given = ", ".join(f"{name} => :{name}" for name in arguments)
    operations.execute(sa.text(f"select imgsearch.{function}({given})").bindparams(**arguments))


@renderers.dispatch_for(AddEmbeddingModel)
def _render_add(_: AutogenContext, operation: AddEmbeddingModel) -> str:
    lines = [f"    {name}={value!r}," for name, value in operation.fields.items() if value is not None]
    return "\n".join([f"op.add_embedding_model(\n    {operation.name!r},", *lines, ")"])


@renderers.dispatch_for(DropEmbeddingModel)
def _render_drop(_: AutogenContext, operation: DropEmbeddingModel) -> str:
    return f"op.drop_embedding_model({operation.name!r})"


@renderers.dispatch_for(SwitchAlias)
def _render_switch(_: AutogenContext, operation: SwitchAlias) -> str:
    allowed = "" if operation.allow_missing == 0 else f", allow_missing={operation.allow_missing!r}"
    return f"op.switch_alias({operation.alias!r}, {operation.model!r}{allowed})"


@renderers.dispatch_for(SetIndex)
def _render_index(_: AutogenContext, operation: SetIndex) -> str:
    given = "".join(f", {name}={value!r}" for name, value in operation.spec.items())
    return f"op.set_index({operation.model!r}{given})"
