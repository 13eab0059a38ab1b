"""Between the catalog and the database: a model is loaded, and stored or compared with what is stored."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np

from pgimgsearch.database import store
from pgimgsearch.database.connection import Connection
from pgimgsearch.database.store import Canary, StoredModel, StoredReduction
from pgimgsearch.errors import DriftError
from pgimgsearch.models import canary, catalog, encoder
from pgimgsearch.models.encoder import Encoder, Placement
from pgimgsearch.models.fingerprint import digest, fingerprint
from pgimgsearch.models.reduction import Reduction
from pgimgsearch.models.spec import DEFAULT_BATCH_SIZE, Checkpoint, ModelSpec, preprocess_from
from pgimgsearch.pipeline.loaded import LoadedModel

CARRY_NO_PREPROCESSING = {"onnx", "imagebind", "sscd"}
PACKAGES = ("pillow", "numpy", "torch", "timm", "open_clip_torch", "transformers", "onnxruntime", "pdqhash")


class Loader:
    """Loads each network once, whatever outputs of it are wanted."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._loaded: dict[tuple[Any, ...], Encoder] = {}

    def load(self, spec: ModelSpec) -> Encoder:
        """The encoder of a spec; raises ModelError (see ``encoder.load``)."""
        key = (spec.backend, spec.checkpoint, spec.revision, spec.weights, spec.preprocess)
        if key not in self._loaded:
            self._loaded[key] = encoder.load(spec, self.placement)
        encoder.check_outputs(spec, self._loaded[key])
        return self._loaded[key]


def spec_of(stored: StoredModel) -> ModelSpec:
    """The spec that loads a stored model again."""
    known = catalog.find(stored.name.partition("@")[0])
    return ModelSpec(
        name=stored.name, backend=stored.backend, checkpoint=stored.checkpoint, output=stored.output,
        dim=stored.full_dim or stored.dim, revision=stored.revision, weights=stored.weights,
        preprocess=preprocess_from(stored.preprocess) if stored.backend in CARRY_NO_PREPROCESSING else None,
        storage=stored.storage, text=stored.has_text, normalize=stored.normalize,  # type: ignore[arg-type]
        batch_size=known.batch_size if known else DEFAULT_BATCH_SIZE,
        gated=known.gated if known else False, alternative=known.alternative if known else None,
    )  # fmt: skip


def find_stored(connection: Connection, name: str) -> StoredModel | None:
    """A stored model by name or alias, or by the name that the catalog makes of another."""
    stored = store.find_model(connection, name)
    if stored is None and ("@" in name or ":" in name or name in catalog.SYNONYMS):
        stored = store.find_model(connection, catalog.resolve(name).name)
    return stored


def open_model(
    connection: Connection, name: str, checkpoint: Checkpoint = catalog.PLAIN, placement: Placement | None = None,
    loader: Loader | None = None,
) -> LoadedModel:  # fmt: skip
    """Load a model by name or alias, and store it on first use.

    Raises DriftError where the weights that were loaded are not those whose vectors are stored.
    """
    loader = loader or Loader(placement or Placement())
    stored = find_stored(connection, name)
    if stored is None:
        return add_model(connection, catalog.resolve(name, checkpoint), loader=loader)
    return open_stored(connection, stored, checkpoint, loader)


def open_stored(connection: Connection, stored: StoredModel, checkpoint: Checkpoint, loader: Loader) -> LoadedModel:
    """Load a stored model again; raises ModelError where what was loaded is another."""
    spec = catalog.with_checkpoint(spec_of(stored), checkpoint)
    loaded = loader.load(spec)
    reduction = _reduction(connection, stored)
    check_fingerprint(stored, loaded, reduction)
    return LoadedModel(stored, loaded, spec.batch_size, reduction)


def add_model(
    connection: Connection, spec: ModelSpec, *, name: str | None = None, loader: Loader | None = None,
) -> LoadedModel:  # fmt: skip
    """Load a model and store it, under another name if one is given."""
    loaded = (loader or Loader(Placement())).load(spec)
    output = loaded.spec.output if spec.output == "auto" else spec.output
    stored = store.add_model(
        connection, _fields(spec, loaded, output) | ({"name": name} if name else {}), _canary(loaded, output, None)
    )
    check_fingerprint(stored, loaded, None)  # another session may have been first
    return LoadedModel(stored, loaded, spec.batch_size)


def add_reduced(
    connection: Connection, spec: ModelSpec, loaded: Encoder, reduction: Reduction, recall: float, name: str
) -> LoadedModel:
    """Store a model whose vectors are those of another, reduced."""
    output = loaded.spec.output if spec.output == "auto" else spec.output
    fields = _fields(spec, loaded, output) | {
        "name": name, "dim": reduction.dim, "full_dim": loaded.dims[output],
        "fingerprint": _fingerprint(loaded, output, reduction),
    }  # fmt: skip
    kept = StoredReduction(reduction.kind, reduction.matrix.tobytes(), reduction.mean.tobytes(), recall)
    stored = store.add_model(connection, fields, _canary(loaded, output, reduction), kept)
    return LoadedModel(stored, loaded, spec.batch_size, _reduction(connection, stored))


def check_fingerprint(stored: StoredModel, loaded: Encoder, reduction: Reduction | None) -> None:
    """Refuse to mix vectors: other weights, preprocessing or output than those stored."""
    if _fingerprint(loaded, stored.output, reduction) == stored.fingerprint:
        return
    changed = [
        f"{key} is {loaded.preprocess.get(key)!r}, was {value!r}"
        for key, value in stored.preprocess.items()
        if _comparable(loaded.preprocess.get(key)) != _comparable(value)
    ]
    what = "; ".join(changed) or "the weights differ"
    raise DriftError(
        f"model {stored.name} is not the one whose vectors are stored: {what}",
        hint=f"load the old weights again, or add these beside them: "
        f"pgimgsearch models add {stored.name} --as {stored.name}-2",
    )


def check_canary(connection: Connection, model: LoadedModel) -> float | None:
    """The cosine distance of the canary from what is stored; raises DriftError beyond what rounding explains.

    None where the model was added without one.
    """
    kept = store.canary_of(connection, model.stored)
    if kept is None:
        return None
    now = _canary(model.encoder, model.stored.output, model.reduction)
    distance = canary.drift(np.asarray(kept.embeddings, np.float32), np.asarray(now.embeddings, np.float32))
    allowed = max(canary.TOLERANCE[made.made_with["dtype"]] for made in (kept, now))
    if distance <= allowed:
        return distance
    changed = [
        f"{key} {kept.made_with.get(key, 'none')} -> {now.made_with.get(key, 'none')}"
        for key in sorted({*kept.made_with, *now.made_with})
        if kept.made_with.get(key) != now.made_with.get(key)
    ]
    raise DriftError(
        f"model {model.stored.name} has drifted: the same pictures are now {distance:.4f} away from what they were "
        f"({allowed} is allowed), with the same weights; changed: {', '.join(changed) or 'nothing that is recorded'}",
        hint=f"go back to what it was, or add the model anew and ingest again: "
        f"pgimgsearch models add {model.stored.name} --as {model.stored.name}-2",
    )


def _canary(loaded: Encoder, output: str, reduction: Reduction | None) -> Canary:
    vectors = canary.vectors(loaded, output)
    if reduction is not None:
        vectors = encoder.unit(reduction.apply(vectors))
    made_with = {"device": loaded.device, "dtype": loaded.dtype, "runtime": loaded.runtime} | _versions()
    return Canary(vectors.astype(float).tolist(), made_with)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _fields(spec: ModelSpec, loaded: Encoder, output: str) -> dict[str, Any]:
    """The row of imgsearch.model."""
    full = loaded.spec
    return {
        "name": spec.name, "dim": loaded.dims[output], "storage": spec.storage,
        "metric": "hamming" if spec.storage == "bit" else "cosine", "backend": spec.backend,
        "checkpoint": spec.checkpoint, "revision": full.revision, "weights": spec.weights, "output": output,
        "preprocess": loaded.preprocess, "normalize": spec.normalize, "logit_scale": loaded.logit_scale,
        "logit_bias": loaded.logit_bias, "fingerprint": loaded.fingerprint(output),
        "has_text": encoder.reads_text(loaded, output), "licence": spec.licence, "near": spec.near,
    }  # fmt: skip


def _fingerprint(loaded: Encoder, output: str, reduction: Reduction | None) -> str:
    plain = loaded.fingerprint(output)
    return plain if reduction is None else fingerprint(plain, {}, digest(reduction.digest_parts()))


def _reduction(connection: Connection, stored: StoredModel) -> Reduction | None:
    if stored.full_dim is None:
        return None
    kept = store.reduction_of(connection, stored)
    assert kept is not None, "it is stored with the model"
    matrix = np.frombuffer(kept.matrix, np.float32).reshape(stored.dim, stored.full_dim)
    return Reduction(kept.kind, matrix, np.frombuffer(kept.mean, np.float32))  # type: ignore[arg-type]


def _comparable(value: object) -> object:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
