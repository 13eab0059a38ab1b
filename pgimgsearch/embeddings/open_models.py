"""Before a run: the models that are wanted are found, loaded and checked, and only then stored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings import reduce_dimensions as reduce
from pgimgsearch.embeddings import registry as register
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.registry import Loader, main_output
from pgimgsearch.errors import ModelError, SourceError, UsageError
from pgimgsearch.models import catalog
from pgimgsearch.models.encoder import Encoder, Placement
from pgimgsearch.models.reduction import Kind, check_dim
from pgimgsearch.models.runtime.batches import find_size
from pgimgsearch.models.spec import Checkpoint, ModelSpec
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits
from pgimgsearch.sources.sample import prepared_sample
from pgimgsearch.sources.source import Source

CHECKED_PICTURES, TRIED_PICTURES = 16, 64
ANYWHERE = Placement()

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """Models as the user asks for them: each name, in each output, at one dimension; ``called`` is a name to store.

    ``claim`` is whether new ones take the aliases that nobody has yet.
    """

    names: list[str]
    outputs: tuple[str, ...] = ()
    dim: int | None = None
    reduction: Kind | None = None
    checkpoint: Checkpoint = catalog.PLAIN
    placement: Placement = ANYWHERE
    batch_size: int | None = None
    called: str | None = None
    normalize: bool = True
    claim: bool = True


@dataclass(frozen=True, slots=True)
class Found:
    """One model of a wish, before it is stored: ``base`` is the stored model in full, ``stored`` that of the wish."""

    spec: ModelSpec
    encoder: Encoder
    base: StoredModel | None
    stored: StoredModel | None


def open_models(
    url: str, wish: Wish, sources: Sequence[Source], limits: ImageLimits = DEFAULT_LIMITS, tell: Tell = print
) -> list[LoadedModel]:
    """Open every model wished for, and store those that are new. Each is opened once, whatever names it goes by.

    Nothing is stored before all are loaded. Raises ModelError where one cannot be, DriftError where one is not what is
    stored, and ModelError where an exported one is not the same on these pictures.
    """
    with connect(url) as connection:
        opener = Opener(url, connection, wish, sources, limits, tell)
        found = [opener.find(name, output) for name in wish.names for output in wish.outputs or (None,)]
        opener.check_exported([one.encoder for one in found])
        opened = {model.stored.model_id: model for model in map(opener.store, found)}
        for model in opened.values():
            register.check_canary(connection, model)
            if store.get_model(connection, model.stored.name).fingerprint is None:
                raise ModelError(
                    f"{model.stored.name} is declared, and was never loaded by a role that may complete it",
                    hint=f"ask the owner of the database to run: pgimgsearch models fill {model.stored.name}",
                )
    networks = {id(model.encoder): model for model in opened.values()}
    sizes = {key: wish.batch_size or find_size(model.encoder, model.batch_size) for key, model in networks.items()}
    return [model.with_batch_size(sizes[id(model.encoder)]) for model in opened.values()]


def add(url: str, wish: Wish, tell: Tell) -> LoadedModel:
    """Store a model without pictures at hand; one of fewer dimensions is fitted on, and filled from, stored vectors."""
    with connect(url) as connection:
        opener = Opener(url, connection, wish, [], DEFAULT_LIMITS, tell)
        return opener.store(opener.find(wish.names[0], wish.outputs[0] if wish.outputs else None))


def expanded(wish: Wish) -> list[str]:
    """The names of the models wished for, as far as they are known before anything is loaded."""
    names = [f"{name}@{output}" if output else name for name in wish.names for output in wish.outputs or ("",)]
    return [f"{name}@{wish.dim}" if wish.dim else name for name in names]


class Opener:
    """Opens the models of one wish over one connection."""

    def __init__(
        self, url: str, connection: Connection, wish: Wish, sources: Sequence[Source], limits: ImageLimits, tell: Tell
    ) -> None:
        self.url, self.connection, self.wish = url, connection, wish
        self.sources, self.limits, self.tell = sources, limits, tell
        self.loader = Loader(wish.placement)
        self.told: set[str] = set()

    def find(self, name: str, output: str | None) -> Found:
        """Find a model and load its network; its licence is told before that, where it is new."""
        stored, spec = register.look_up(self.connection, name, self.wish.checkpoint)
        if self.wish.called is not None and store.find_model(self.connection, name) is None:
            spec = catalog.resolve(name, self.wish.checkpoint)  # anew, whatever is stored by the name it has by itself
        if stored is None and spec.name not in self.told:
            self.told.add(spec.name)
            self.tell(f"{spec.name}: licence {spec.licence}")
        encoder = self.loader.load(spec)
        if output is not None and output != main_output(spec, encoder):
            spec = spec.with_output(output)
            encoder = self.loader.load(spec)
            stored = store.find_model(self.connection, spec.name)
        if self.wish.called is not None and self.wish.dim is None:
            stored = None
        if stored is not None and stored.full_dim is None and stored.fingerprint is not None:
            register.check_fingerprint(stored, encoder, None)
        if self.wish.dim is None:
            return Found(spec, encoder, None, stored)
        if spec.storage == "bit":
            raise ModelError(f"{spec.name} is a hash: its bits cannot be reduced", hint="leave --dim out")
        if stored is not None and stored.full_dim is not None:
            raise UsageError(f"{stored.name} is reduced already", hint="name the model that it was made of")
        reduced = None if self.wish.called else store.find_model(self.connection, f"{spec.name}@{self.wish.dim}")
        self._check_kind(reduced)
        return Found(spec, encoder, stored, reduced)

    def store(self, found: Found) -> LoadedModel:
        """The model in the database, which is added where it is not there."""
        if found.stored is not None:
            return register.open_stored(self.connection, found.stored, found.spec, found.encoder)
        if self.wish.dim is not None:
            return self._add_reduced(found, self.wish.dim)
        return register.add_model(
            self.connection, found.spec, found.encoder, self.wish.called, normalize=self.wish.normalize,
            claim=self.wish.claim,
        )  # fmt: skip

    def check_exported(self, encoders: Sequence[Encoder]) -> None:
        """Compare what was exported with what it came from, on the user's own pictures."""
        for encoder in {id(encoder): encoder for encoder in encoders if hasattr(encoder, "check")}.values():
            sample = prepared_sample(encoder, self.sources, TRIED_PICTURES, self.limits)
            pictures = list(islice(sample, CHECKED_PICTURES))
            if not pictures:
                raise SourceError(
                    "no picture could be read to check the exported model on", hint="run without --runtime onnx"
                )
            lowest = encoder.check(pictures)
            self.tell(
                f"{encoder.spec.name} in {encoder.dtype} on ONNX Runtime: lowest cosine with fp32 {lowest:.4f} "
                f"over {len(pictures)} pictures"
            )

    def _add_reduced(self, found: Found, dim: int) -> LoadedModel:
        """Fit on stored vectors where there are enough, else on a sample of the sources; fill from stored ones."""
        output = main_output(found.spec, found.encoder)
        check_dim(found.encoder.dims[output], dim)
        kind = self.wish.reduction or "pca"
        needed = reduce.least_sample(dim, kind)
        vectors = None if found.base is None else reduce.stored_sample(self.connection, found.base)
        if self.sources and (vectors is None or len(vectors) < needed):
            batch_size = self.wish.batch_size or found.spec.batch_size
            sample = reduce.embedded_sample(found.encoder, output, batch_size, self.sources, dim, self.limits)
            vectors = sample if vectors is None or len(sample) > len(vectors) else vectors
        if vectors is None:
            raise ModelError(
                f"there are no vectors of {found.spec.name} to fit on",
                hint=f"pgimgsearch ingest DIR --model {found.spec.name}, and then add it; or fit on a sample of the "
                f"pictures: pgimgsearch ingest DIR --model {found.spec.name} --dim {dim}",
            )
        reduction, recall = reduce.measured(vectors, dim, kind)
        name = self.wish.called or f"{found.spec.name}@{dim}"
        model = register.add_reduced(self.connection, found.spec, found.encoder, reduction, recall, name)
        self.tell(
            f"{name}: {vectors.shape[1]} dimensions to {dim} by {kind}; of {len(vectors)} vectors a quarter was held "
            f"out to measure: it keeps {recall:.1%} of the ten nearest neighbours"
        )
        if found.base is not None:
            self._fill(found.base, model)
        return model

    def _fill(self, base: StoredModel, model: LoadedModel) -> None:
        """Take over the stored vectors; a model that could not be filled is not left behind empty."""
        try:
            with connect(self.url) as reader:
                taken = reduce.fill(self.connection, reader, base, model)
        except BaseException:
            store.discard_model(self.connection, model.stored)
            raise
        self.tell(f"{taken} vectors taken over from {base.name}")

    def _check_kind(self, reduced: StoredModel | None) -> None:
        kept = None if reduced is None else store.reduction_of(self.connection, reduced)
        if reduced is not None and kept is not None and self.wish.reduction not in {None, kept.kind}:
            raise UsageError(
                f"{reduced.name} is there, reduced by {kept.kind}",
                hint="leave --reduction out, or store another: pgimgsearch models add NAME --dim N --reduction "
                f"{self.wish.reduction} --as NAME",
            )
