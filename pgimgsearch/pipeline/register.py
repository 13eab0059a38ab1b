"""Between the catalog and the database: a model is loaded, and stored or compared with what is stored."""

from dataclasses import dataclass

from pgimgsearch.database import store
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.store import StoredModel
from pgimgsearch.errors import ModelError
from pgimgsearch.models import catalog, encoder
from pgimgsearch.models.encoder import Encoder
from pgimgsearch.models.spec import DEFAULT_BATCH_SIZE, ModelSpec


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model of the database, ready to embed."""

    stored: StoredModel
    encoder: Encoder
    batch_size: int


def spec_of(stored: StoredModel) -> ModelSpec:
    """The spec that loads a stored model again."""
    known = next((spec for spec in catalog.CATALOG if spec.name == stored.name), None)
    return ModelSpec(
        name=stored.name, backend=stored.backend, checkpoint=stored.checkpoint, output=stored.output, dim=stored.dim,
        revision=stored.revision, weights=stored.weights, storage=stored.storage, text=stored.has_text,  # type: ignore[arg-type]
        normalize=stored.normalize, batch_size=known.batch_size if known else DEFAULT_BATCH_SIZE,
        gated=known.gated if known else False, alternative=known.alternative if known else None,
    )  # fmt: skip


def open_model(connection: Connection, name: str, *, weights: str | None, device: str) -> LoadedModel:
    """Load a model by name or alias, and store it on first use.

    Raises ModelError where the weights that were loaded are not those whose vectors are stored.
    """
    stored = store.find_model(connection, name)
    if stored is None and weights is None and ":" in name:  # a folder after a prefix is stored under a shorter name
        stored = store.find_model(connection, catalog.resolve(name).name)
    if stored is None:
        return add_model(connection, catalog.resolve(name, weights), device=device)
    spec = spec_of(stored)
    if weights is not None:
        spec = catalog.with_weights(spec, weights)
    loaded = encoder.load(spec, device)
    check_fingerprint(stored, loaded)
    return LoadedModel(stored, loaded, spec.batch_size)


def add_model(connection: Connection, spec: ModelSpec, *, device: str, name: str | None = None) -> LoadedModel:
    """Load a model and store it, under another name if one is given."""
    loaded = encoder.load(spec, device)
    full = loaded.spec
    stored = store.add_model(
        connection,
        {
            "name": name or full.name,
            "dim": full.dim,
            "storage": full.storage,
            "metric": "hamming" if full.storage == "bit" else "cosine",
            "backend": full.backend,
            "checkpoint": full.checkpoint,
            "revision": full.revision,
            "weights": full.weights,
            "output": full.output,
            "preprocess": loaded.preprocess,
            "normalize": full.normalize,
            "logit_scale": loaded.logit_scale,
            "logit_bias": loaded.logit_bias,
            "fingerprint": loaded.fingerprint,
            "has_text": full.text,
            "licence": full.licence,
            "near": full.near,
        },
    )
    check_fingerprint(stored, loaded)  # another session may have been first
    return LoadedModel(stored, loaded, spec.batch_size)


def check_fingerprint(stored: StoredModel, loaded: Encoder) -> None:
    """Refuse to mix vectors: other weights, preprocessing or output than those stored."""
    if loaded.fingerprint == stored.fingerprint:
        return
    changed = [
        f"{key} is {loaded.preprocess.get(key)!r}, was {value!r}"
        for key, value in stored.preprocess.items()
        if _comparable(loaded.preprocess.get(key)) != _comparable(value)
    ]
    what = "; ".join(changed) or "the weights differ"
    raise ModelError(
        f"model {stored.name} is not the one whose vectors are stored: {what}",
        hint=f"load the old weights again, or add these beside them: "
        f"pgimgsearch models add {stored.name} --as {stored.name}-2",
    )


def _comparable(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
