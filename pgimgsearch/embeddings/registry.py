"""Between the catalog and the database: a model is loaded, and stored or compared with what is stored."""

import importlib.metadata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import (
    Canary,
    StoredModel,
    StoredReduction,
    canary_of,
    complete_declaration,
    find_model,
    get_model,
    insert_model,
    reduction_of,
    set_weights,
)
from pgimgsearch.database.privileges import can_change_models, owns_table
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import DriftError, ModelError
from pgimgsearch.models import canary, catalog, encoder, lookup
from pgimgsearch.models.backends import backends
from pgimgsearch.models.encoder import Encoder, Placement
from pgimgsearch.models.fingerprint import digest, fingerprint
from pgimgsearch.models.load import load
from pgimgsearch.models.reduction import Reduction
from pgimgsearch.models.spec import DEFAULT_BATCH_SIZE, Checkpoint, ModelSpec, preprocess_from

PACKAGES = ("pillow", "numpy", "torch", "timm", "open_clip_torch", "transformers", "onnxruntime", "pdqhash")


class Loader:
    """Loads each network once, whatever outputs of it are wanted."""

    def __init__(self, placement: Placement, say: Callable[[str], None] = lambda _: None) -> None:
        self.placement, self._say = placement, say
        self._loaded: dict[tuple[Any, ...], Encoder] = {}

    def load(self, spec: ModelSpec, made: Callable[[str], bool] | None = None) -> Encoder:
        """The encoder of a spec; ``made`` and errors as of ``load.load``."""
        found = self._loaded.get(_encoder_key(spec, spec.revision))
        if found is None:
            found = load(spec, self.placement, made, self._say)
            for revision in (spec.revision, found.spec.revision):  # what was asked for, and what that was
                self._loaded[_encoder_key(spec, revision)] = found
        encoder.check_outputs(spec, found)
        return found


def main_output(spec: ModelSpec, loaded: Encoder) -> str:
    """The output of a spec; where it does not say, the network's first."""
    return next(iter(loaded.dims)) if spec.output == "auto" else spec.output


def spec_of(stored: StoredModel) -> ModelSpec:
    """The spec that loads a stored model again."""
    known = lookup.find(stored.name.partition("@")[0])
    if stored.fingerprint is None and known is not None and known.checkpoint == stored.checkpoint:
        declared = known if stored.output in {known.output, "auto"} else known.with_output(stored.output)
        storage = declared.storage if "bit" in {declared.storage, stored.storage} else stored.storage
        return replace(
            declared, name=stored.name, revision=stored.revision or known.revision,
            storage=storage, normalize=stored.normalize,  # type: ignore[arg-type]
        )  # fmt: skip
    says_nothing = backends()[stored.backend].needs_preprocessing and stored.fingerprint is not None
    return ModelSpec(
        name=stored.name, backend=stored.backend, checkpoint=stored.checkpoint, output=stored.output,
        dim=stored.full_dim or stored.dim, revision=stored.revision, weights=stored.weights,
        preprocess=preprocess_from(stored.preprocess) if says_nothing else None,
        storage=stored.storage, text=stored.has_text, normalize=stored.normalize,  # type: ignore[arg-type]
        licence=stored.licence or "", near=stored.near or 1.0,
        batch_size=known.batch_size if known else DEFAULT_BATCH_SIZE,
        gated=known.gated if known else False, alternative=known.alternative if known else None,
    )  # fmt: skip


def look_up(
    connection: Connection, name: str, checkpoint: Checkpoint = lookup.PLAIN
) -> tuple[StoredModel | None, ModelSpec]:
    """A model by its stored name or alias, or by what the catalog makes of another name, and the spec that loads it.

    A path in the name is the checkpoint to load, also where a model of that name is stored. Raises ModelError for a
    name that nobody knows.
    """
    stored = find_model(connection, name)
    if stored is None:
        base, _, last = name.rpartition("@")
        if base and last.isdigit():  # of fewer dimensions, so only the database can know it
            stored = find_model(connection, f"{look_up(connection, base)[1].name}@{last}")
        if stored is None:
            spec = lookup.resolve(name, checkpoint)
            stored = find_model(connection, spec.name)
            if stored is None or spec.weights not in {None, stored.weights}:
                return stored, spec  # another file speaks for itself
    return stored, lookup.with_checkpoint(spec_of(stored), checkpoint)


def find_stored(connection: Connection, name: str) -> StoredModel | None:
    """The stored model of a name, an alias, or any name that would have added it; None where it is not stored yet.

    Raises ModelError for a name that nobody knows.
    """
    base, _, last = name.rpartition("@")
    if base and last.isdigit() and find_model(connection, name) is None:
        return find_model(connection, f"{look_up(connection, base)[1].name}@{last}")
    stored, spec = look_up(connection, name)
    return stored if stored and spec.weights in {None, stored.weights} else None


def get_stored(connection: Connection, name: str) -> StoredModel:
    """As ``find_stored``; raises ModelError with the names of the stored models where it is none of them."""
    with suppress(ModelError):
        if (stored := find_stored(connection, name)) is not None:
            return stored
    return get_model(connection, name)


def open_model(
    connection: Connection, name: str, checkpoint: Checkpoint = lookup.PLAIN, placement: Placement | None = None,
    loader: Loader | None = None,
) -> LoadedModel:  # fmt: skip
    """Load a model by name or alias, and store it on first use.

    Raises DriftError where the weights that were loaded are not those whose vectors are stored.
    """
    loader = loader or Loader(placement or Placement())
    stored, spec = look_up(connection, name, checkpoint)
    loaded = loader.load(spec, made_by(connection, stored, checkpoint))
    return store_model(connection, spec, loaded) if stored is None else open_stored(connection, stored, spec, loaded)


def made_by(connection: Connection, stored: StoredModel | None, checkpoint: Checkpoint) -> Callable[[str], bool] | None:
    """Whether the network of a fingerprint made stored vectors; None where the user says which weights to look at."""
    if stored is None or checkpoint != replace(lookup.PLAIN, trust=checkpoint.trust):
        return None
    reduction = _reduction(connection, stored)

    return lambda plain: _reduced_fingerprint(plain, reduction) == stored.fingerprint


def open_stored(connection: Connection, stored: StoredModel, spec: ModelSpec, loaded: Encoder) -> LoadedModel:
    """A stored model with its network; raises DriftError where that is another. One only declared is completed."""
    if stored.fingerprint is None:
        stored = _complete_declaration(connection, stored, spec, loaded)
    reduction = _reduction(connection, stored)
    check_fingerprint(stored, loaded, reduction)
    if spec.weights not in {None, stored.weights} and owns_table(connection, stored):
        set_weights(connection, stored, spec.weights)  # the same weights at another place
    return LoadedModel(stored, loaded, spec.batch_size, reduction)


def _complete_declaration(connection: Connection, stored: StoredModel, spec: ModelSpec, loaded: Encoder) -> StoredModel:
    """Complete a declared model with what its weights say; raises ModelError where they give other vectors."""
    output = main_output(spec, loaded)
    fields = _fields(spec, loaded, output)
    declared = {"dim": stored.dim, "storage": stored.storage}
    differing = [f"{key} {fields[key]}, not {value}" for key, value in declared.items() if fields[key] != value]
    if differing:
        raise ModelError(
            f"model {stored.name} was declared otherwise than it is: {'; '.join(differing)}",
            hint="correct the migration that adds it, or choose another name there",
        )
    own = {key: value for key, value in fields.items() if key not in {"name", "metric", "normalize", *declared}}
    if not can_change_models(connection):  # a reader asks with it as it is
        return replace(stored, **own | {"near": stored.near or own["near"]})
    return complete_declaration(connection, stored, own, _canary(loaded, output))


def store_model(
    connection: Connection, spec: ModelSpec, loaded: Encoder, name: str | None = None, *,
    normalize: bool = True, claim: bool = True,
) -> LoadedModel:  # fmt: skip
    """Store a loaded model, under another name if one is given.

    With ``claim`` it becomes those of default, text and duplicates that it is made for and that mean nothing yet.
    """
    output = main_output(spec, loaded)
    aliases = suitable_aliases(spec.backend, has_text=encoder.reads_text(loaded, output)) if claim else []
    own = ({"name": name} if name else {}) | {"normalize": spec.normalize and normalize}
    stored = insert_model(connection, _fields(spec, loaded, output) | own, _canary(loaded, output), aliases=aliases)
    check_fingerprint(stored, loaded, None)  # another session may have been first
    return LoadedModel(stored, loaded, spec.batch_size)


def suitable_aliases(backend: str, *, has_text: bool) -> list[str]:
    """The aliases that a model can serve."""
    fits = {"default": True, "text": has_text, "duplicates": backends()[backend].made_for_copies}
    return [alias for alias, suitable in fits.items() if suitable]


def store_reduced_model(
    connection: Connection, spec: ModelSpec, loaded: Encoder, reduction: Reduction, recall: float, name: str
) -> LoadedModel:
    """Store a model whose vectors are those of another, reduced."""
    output = main_output(spec, loaded)
    fields = _fields(spec, loaded, output) | {
        "name": name, "dim": reduction.dim, "full_dim": loaded.dims[output],
        "fingerprint": _fingerprint(loaded, output, reduction),
    }  # fmt: skip
    kept = StoredReduction(reduction.kind, reduction.matrix.tobytes(), recall)
    aliases = suitable_aliases(spec.backend, has_text=fields["has_text"])
    stored = insert_model(connection, fields, _canary(loaded, output), kept, aliases=aliases)
    return LoadedModel(stored, loaded, spec.batch_size, _reduction(connection, stored))


def check_fingerprint(stored: StoredModel, loaded: Encoder, reduction: Reduction | None) -> None:
    """Refuse to mix vectors: other weights, preprocessing or output than those stored."""
    if _fingerprint(loaded, stored.output, reduction) == stored.fingerprint:
        return
    changed = [
        f"{key} is {loaded.preprocess.get(key)!r}, was {stored.preprocess.get(key)!r}"
        for key in {**stored.preprocess, **loaded.preprocess}
        if _comparable(loaded.preprocess.get(key)) != _comparable(stored.preprocess.get(key))
    ]
    what = "; ".join(changed) or "the weights differ"
    raise DriftError(
        f"model {stored.name} is not the one whose vectors are stored: {what}",
        hint=f"load the old weights again, or add these beside them: {_add_again_command(stored, loaded)}",
    )


def check_canary(connection: Connection, model: LoadedModel) -> float | None:
    """The cosine distance of the canary from what is stored; raises DriftError beyond what rounding explains.

    None where the model was added without one.
    """
    kept = canary_of(connection, model.stored)
    if kept is None:
        return None
    now = _canary(model.encoder, model.stored.output)
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
        f"model {model.stored.name} has drifted: the same images are now {distance:.4f} away from what they were "
        f"({allowed} is allowed), with the same weights; changed: {', '.join(changed) or 'nothing that is recorded'}",
        hint="go back to what it was, or add the model anew and ingest again: "
        f"{_add_again_command(model.stored, model.encoder)}",
    )


def _encoder_key(spec: ModelSpec, revision: str | None) -> tuple[Any, ...]:
    """What makes two specs the same network."""
    return spec.backend, spec.checkpoint, revision, spec.weights, spec.preprocess


def _add_again_command(stored: StoredModel, loaded: Encoder) -> str:
    """The command that adds a model anew, beside the one that is stored."""
    base = stored.name.partition("@")[0]
    prefix = backends()[stored.backend].prefix or stored.backend
    rows = (
        spec.name for spec in catalog.CATALOG if (spec.backend, spec.checkpoint) == (stored.backend, stored.checkpoint)
    )
    named = next(rows, f"{prefix}:{stored.checkpoint}")
    options = [f"--weights {loaded.spec.weights}" if loaded.spec.weights else "",
               "--preprocess NAME" if backends()[stored.backend].needs_preprocessing else "",
               f"--dim {stored.dim}" if stored.full_dim else "", f"--as {base}-2"]  # fmt: skip
    return " ".join(["pgimgsearch models add", named, *filter(None, options)])


def _canary(loaded: Encoder, output: str) -> Canary:
    """Of the full vectors, also where a model reduces them: whitening would blow rounding up."""
    made_with = {"device": loaded.device, "dtype": loaded.dtype, "runtime": loaded.runtime} | _versions()
    return Canary(canary.vectors(loaded, output).astype(float).tolist(), made_with)


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
    return _reduced_fingerprint(loaded.fingerprint(output), reduction)


def _reduced_fingerprint(plain: str, reduction: Reduction | None) -> str:
    return plain if reduction is None else fingerprint(plain, {}, digest(reduction.digest_parts()))


def _reduction(connection: Connection, stored: StoredModel) -> Reduction | None:
    if stored.full_dim is None:
        return None
    kept = reduction_of(connection, stored)
    assert kept is not None, "it is stored with the model"
    matrix = np.frombuffer(kept.matrix, np.float32).reshape(stored.dim, stored.full_dim)
    return Reduction(kept.kind, matrix, np.zeros(stored.full_dim, np.float32))  # type: ignore[arg-type]


def _comparable(value: object) -> object:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
