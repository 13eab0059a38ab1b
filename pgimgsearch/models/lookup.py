"""From a name to what it loads: short names of the catalog, and prefixes that reach every other model."""

import difflib
from dataclasses import replace
from pathlib import Path

from pgimgsearch.errors import ModelError
from pgimgsearch.models.backends import backends, prefixes
from pgimgsearch.models.catalog import CATALOG, PREPROCESS, SYNONYMS
from pgimgsearch.models.spec import Checkpoint, ModelSpec

PLAIN = Checkpoint()


def names() -> list[str]:
    """The short names."""
    return [spec.name for spec in CATALOG]


def find(name: str) -> ModelSpec | None:
    """The row of a short name, with ``@OUTPUT`` one of its other outputs."""
    base, _, output = name.partition("@")
    spec = next((spec for spec in CATALOG if spec.name == SYNONYMS.get(base, base)), None)
    return spec.with_output(output) if spec and output else spec


def resolve(name: str, checkpoint: Checkpoint = PLAIN) -> ModelSpec:
    """Find the model of a short name or a prefixed one, as ``NAME`` or ``NAME@OUTPUT``.

    Raises ModelError with the nearest known names.
    """
    base, at, output = name.rpartition("@")
    if not at or "/" in output:  # no output, but a path that holds the sign
        base, output = name, ""
    prefix, _, rest = base.partition(":")
    spec = _prefixed(base, prefixes()[prefix], rest) if rest and prefix in prefixes() else find(base)
    if spec is None:
        raise _unknown(base)
    if output.isdigit():
        raise ModelError(f"{name} is not stored yet", hint=f"add it: --model {base} --dim {output}")
    if output and output != spec.output:
        if spec.output != "auto" and output not in spec.also:
            raise ModelError(
                f"{spec.name} has no output {output}", hint=f"it has: {', '.join([spec.output, *spec.also])}"
            )
        spec = spec.with_output(output)
    return with_checkpoint(spec, checkpoint)


def with_checkpoint(spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """The same model with what the user says of its weights; raises ModelError where that is not there."""
    if checkpoint.weights is not None:
        path = Path(checkpoint.weights).expanduser().resolve()
        if not path.exists():
            raise ModelError(f"there is no checkpoint at {path}", hint="give the file or folder that holds the weights")
        spec = replace(spec, weights=str(path))
    if checkpoint.preprocess is not None:
        if not backends()[spec.backend].needs_preprocessing:
            raise ModelError(f"{spec.name} says itself how its images are prepared", hint="leave --preprocess out")
        if checkpoint.preprocess not in PREPROCESS:
            raise ModelError(f"unknown preprocessing: {checkpoint.preprocess}", hint=f"known: {', '.join(PREPROCESS)}")
        spec = replace(spec, preprocess=PREPROCESS[checkpoint.preprocess])
    return replace(spec, revision=checkpoint.revision or spec.revision, trust=checkpoint.trust)


def _prefixed(name: str, backend: str, rest: str) -> ModelSpec:
    """A model outside the table; a path after the prefix is a local checkpoint."""
    suffix = backends()[backend].file_suffix
    if rest.startswith(("/", "./", "../", "~")) or (suffix and rest.endswith(suffix)):
        path = Path(rest).expanduser().resolve()
        short = path.stem if path.suffix == suffix else path.name
        return with_checkpoint(ModelSpec(f"{name.partition(':')[0]}:{short}", backend, short), Checkpoint(str(path)))
    return ModelSpec(name, backend, rest)


def _unknown(name: str) -> ModelError:
    near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.4)
    known = ", ".join(f"{prefix}:NAME" for prefix in prefixes())
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    return ModelError(
        f"unknown model: {name}",
        hint=f'{suggestion}see "pgimgsearch models list --all"; any other model goes by prefix: {known}',
    )
