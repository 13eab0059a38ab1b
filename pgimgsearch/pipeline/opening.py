"""Before a run: the models that are wanted, opened, and checked against what is stored and what was promised."""

from collections.abc import Callable
from dataclasses import dataclass

from pgimgsearch.database import store
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.models import catalog
from pgimgsearch.models.batches import find_size
from pgimgsearch.models.encoder import Encoder, Placement
from pgimgsearch.models.reduction import Kind
from pgimgsearch.models.spec import Checkpoint, ModelSpec
from pgimgsearch.pipeline import reduce, register
from pgimgsearch.pipeline.loaded import LoadedModel
from pgimgsearch.pipeline.register import Loader
from pgimgsearch.pipeline.run import Options
from pgimgsearch.pipeline.sample import prepared_sample
from pgimgsearch.pipeline.scan import Source

CHECKED_PICTURES = 16
ANYWHERE = Placement()

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """Models as the user asks for them: each name, in each output, at one dimension."""

    names: list[str]
    outputs: tuple[str, ...] = ()
    dim: int | None = None
    reduction: Kind | None = None
    checkpoint: Checkpoint = catalog.PLAIN
    placement: Placement = ANYWHERE
    batch_size: int | None = None


def open_models(url: str, wish: Wish, source: Source, options: Options, tell: Tell = print) -> list[LoadedModel]:
    """Open every model wished for, and store those that are new. Each is opened once, whatever names it goes by.

    Raises ModelError where a model has drifted, or an exported one is not the same on these pictures.
    """
    loader = Loader(wish.placement)
    opened: dict[int, LoadedModel] = {}
    with connect(url) as connection:
        for name in wish.names:
            for output in wish.outputs or (None,):
                model = _open(url, connection, name, output, wish, loader, source, options, tell)
                opened[model.stored.model_id] = model
        for model in opened.values():
            register.check_canary(connection, model)
    models = list(opened.values())
    _check_exported(models, source, options, tell)
    sizes = {id(m.encoder): wish.batch_size or find_size(m.encoder, m.batch_size) for m in models}
    return [model.with_batch_size(sizes[id(model.encoder)]) for model in models]


def expanded(wish: Wish) -> list[str]:
    """The names of the models wished for, as far as they are known before anything is loaded."""
    names = [f"{name}@{output}" if output else name for name in wish.names for output in wish.outputs or ("",)]
    return [f"{name}@{wish.dim}" if wish.dim else name for name in names]


def add(url: str, spec: ModelSpec, name: str | None, wish: Wish, tell: Tell) -> LoadedModel:
    """Store a model without pictures at hand; one of fewer dimensions is fitted on, and filled from, stored vectors."""
    with connect(url) as connection:
        loader = Loader(wish.placement)
        tell(f"{spec.name}: licence {spec.licence}")
        if wish.dim is None:
            return register.add_model(connection, spec, name=name, loader=loader)
        base = register.find_stored(connection, spec.name)
        return _add_reduced(url, connection, spec, base, name, wish, loader, None, Options(), tell)


def _open(
    url: str, connection: Connection, name: str, output: str | None, wish: Wish, loader: Loader,
    source: Source, options: Options, tell: Tell,
) -> LoadedModel:  # fmt: skip
    stored = register.find_stored(connection, name)
    spec = register.spec_of(stored) if stored else catalog.resolve(name, wish.checkpoint)
    if output is not None and output != _output(loader.load(spec), spec):
        spec = spec.with_output(output)
        stored = store.find_model(connection, spec.name)
    if wish.dim is None:
        if stored is not None:
            return register.open_stored(connection, stored, wish.checkpoint, loader)
        tell(f"{spec.name}: licence {spec.licence}")
        return register.add_model(connection, spec, loader=loader)
    reduced = store.find_model(connection, f"{spec.name}@{wish.dim}")
    if reduced is None:
        return _add_reduced(url, connection, spec, stored, None, wish, loader, source, options, tell)
    kept = store.reduction_of(connection, reduced)
    if wish.reduction is not None and kept is not None and kept.kind != wish.reduction:
        raise UsageError(
            f"{reduced.name} is there, reduced by {kept.kind}",
            hint=f"leave --reduction out, or: pgimgsearch models add {spec.name} --dim {wish.dim} "
            f"--reduction {wish.reduction} --as NAME",
        )
    return register.open_stored(connection, reduced, wish.checkpoint, loader)


def _add_reduced(
    url: str, connection: Connection, spec: ModelSpec, base: StoredModel | None, name: str | None, wish: Wish,
    loader: Loader, source: Source | None, options: Options, tell: Tell,
) -> LoadedModel:  # fmt: skip
    """Fit on stored vectors where there are enough, else on a sample of the source; fill from stored ones."""
    assert wish.dim is not None
    if spec.storage == "bit":
        raise ModelError(f"{spec.name} is a hash: its bits cannot be reduced", hint="leave --dim out")
    loaded = loader.load(spec)
    if base is not None:
        register.check_fingerprint(base, loaded, None)
    vectors = None if base is None else reduce.stored_sample(connection, base)
    if vectors is None or (source is not None and len(vectors) < reduce.sample_size(wish.dim)):
        if source is None:
            raise ModelError(
                f"there are no vectors of {spec.name} to fit on",
                hint=f"pgimgsearch ingest DIR --model {spec.name}, and then add it; or fit on a sample of the "
                f"pictures: pgimgsearch ingest DIR --model {spec.name} --dim {wish.dim}",
            )
        vectors = reduce.embedded_sample(loaded, _output(loaded, spec), spec.batch_size, source, wish.dim, options)
    kind = wish.reduction or "pca"
    reduction, recall = reduce.measured(vectors, wish.dim, kind)
    model = register.add_reduced(connection, spec, loaded, reduction, recall, name or f"{spec.name}@{wish.dim}")
    tell(
        f"{model.stored.name}: {vectors.shape[1]} dimensions to {wish.dim} by {kind}, fitted on {len(vectors)} "
        f"vectors; it keeps {recall:.1%} of the ten nearest neighbours"
    )
    if base is not None:
        with connect(url) as reader:
            tell(f"{reduce.fill(connection, reader, base, model)} vectors taken over from {base.name}")
    return model


def _output(loaded: Encoder, spec: ModelSpec) -> str:
    return loaded.spec.output if spec.output == "auto" else spec.output


def _check_exported(models: list[LoadedModel], source: Source, options: Options, tell: Tell) -> None:
    """Compare what was exported with what it came from, on the user's own pictures."""
    exported = {id(m.encoder): m.encoder for m in models if hasattr(m.encoder, "check")}
    for encoder in exported.values():
        pictures = list(prepared_sample(encoder, source, CHECKED_PICTURES, options))
        if not pictures:
            continue
        lowest = encoder.check(pictures)
        tell(
            f"{encoder.spec.name} in {encoder.dtype} on ONNX Runtime: lowest cosine with fp32 {lowest:.4f} "
            f"over {len(pictures)} pictures"
        )
