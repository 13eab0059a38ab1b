"""Open the models that a command asks for: resolve, load and check them, and only then store new ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel, discard_model, find_model, get_model, list_models, reduction_of
from pgimgsearch.database.privileges import can_change_models
from pgimgsearch.embeddings import reduced_models
from pgimgsearch.embeddings.deferred_models import DeferredModels
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.embeddings.registry import (
    Loader,
    check_canary,
    check_fingerprint,
    find_stored,
    look_up,
    made_by,
    main_output,
    open_stored,
    store_model,
    store_reduced_model,
)
from pgimgsearch.errors import ModelError, SourceError, UsageError
from pgimgsearch.models import lookup
from pgimgsearch.models.encoder import Encoder, Placement
from pgimgsearch.models.reduction import Kind, check_dim
from pgimgsearch.models.runtime.batches import find_size
from pgimgsearch.models.spec import Checkpoint, ModelSpec
from pgimgsearch.reporter import SILENT, Reporter
from pgimgsearch.sources.limits import DEFAULT_LIMITS, ImageLimits
from pgimgsearch.sources.sample import prepared_sample
from pgimgsearch.sources.source import Source

CHECKED_IMAGES, TRIED_IMAGES = 16, 64
ANYWHERE = Placement()


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Models as the user asks for them: each name, in each output, at one dimension.

    ``store_as`` is another name to store a new model under; ``claim`` lets it take aliases that mean nothing yet.
    """

    names: list[str]
    outputs: tuple[str, ...] = ()
    dim: int | None = None
    reduction: Kind | None = None
    checkpoint: Checkpoint = lookup.PLAIN
    placement: Placement = ANYWHERE
    batch_size: int | None = None
    store_as: str | None = None
    normalize: bool = True
    claim: bool = True


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """One model of a request, before it is stored: ``base`` is the full stored model, ``stored`` the one requested."""

    spec: ModelSpec
    encoder: Encoder
    base: StoredModel | None
    stored: StoredModel | None


def open_models(
    url: str,
    request: ModelRequest,
    sources: Sequence[Source],
    limits: ImageLimits = DEFAULT_LIMITS,
    reporter: Reporter = SILENT,
) -> list[LoadedModel]:
    """Open every model wished for, and store those that are new. Each is opened once, whatever names it goes by.

    Nothing is stored before all are loaded. Raises ModelError where one cannot be, DriftError where one is not what is
    stored, and ModelError where an exported one is not the same on these images.
    """
    with connect(url) as connection:
        opener = ModelOpener(url, connection, request, sources, limits, reporter)
        found = [opener.find(name, output) for name in request.names for output in request.outputs or (None,)]
        opener.check_exported([one.encoder for one in found])
        opened = {model.stored.model_id: model for model in map(opener.store, found)}
        for model in opened.values():
            check_canary(connection, model)
            if get_model(connection, model.stored.name).fingerprint is None:
                raise ModelError(
                    f"{model.stored.name} is declared, and was never loaded by a role that may complete it",
                    hint=f"ask the owner of the database to run: pgimgsearch models fill {model.stored.name}",
                )
    networks = {id(model.encoder): model for model in opened.values()}
    sizes = {key: request.batch_size or find_size(model.encoder, model.batch_size) for key, model in networks.items()}
    return [model.with_batch_size(sizes[id(model.encoder)]) for model in opened.values()]


def defer_models(
    url: str,
    request: ModelRequest,
    sources: Sequence[Source],
    limits: ImageLimits = DEFAULT_LIMITS,
    reporter: Reporter = SILENT,
) -> DeferredModels:
    """As ``open_models``, which runs at the first image to embed where every model is stored already, else now."""
    with connect(url) as connection:
        stored = _stored_models(connection, request)
    if stored is None:
        return DeferredModels.of(open_models(url, request, sources, limits, reporter))
    # by their own names: an alias may mean another model by then
    found = replace(request, names=[model.name for model in stored], outputs=(), dim=None)
    return DeferredModels(stored, partial(open_models, url, found, sources, limits, reporter))


def _stored_models(connection: Connection, request: ModelRequest) -> list[StoredModel] | None:
    """The rows of a request that asks for nothing but models that are stored and complete; else None."""
    if request.checkpoint != lookup.PLAIN or request.reduction or request.store_as:
        return None
    found: dict[int, StoredModel] = {}
    for name in expanded_names(request):
        stored = find_stored(connection, name)
        if stored is None or stored.fingerprint is None:
            return None
        found[stored.model_id] = stored
    return list(found.values())


def add_model(url: str, request: ModelRequest, reporter: Reporter) -> LoadedModel:
    """Store a model without images at hand; one of fewer dimensions is fitted on, and filled from, stored vectors."""
    with connect(url) as connection:
        opener = ModelOpener(url, connection, request, [], DEFAULT_LIMITS, reporter)
        return opener.store(opener.find(request.names[0], request.outputs[0] if request.outputs else None))


def default_model_names(connection: Connection) -> list[str]:
    """The alias default; raises UsageError where it means nothing yet."""
    if find_model(connection, "default") is None:
        raise UsageError("no model was named, and the database has none yet", hint="name one: --model dinov3")
    return ["default"]


def all_model_names(connection: Connection) -> list[str]:
    """The stored models that this role can fill; raises UsageError where there are none."""
    completes = can_change_models(connection)  # models that were only declared
    names = [
        model.name for model in list_models(connection)
        if model.status in {"building", "ready"} and (completes or model.fingerprint is not None)
    ]  # fmt: skip
    if not names:
        raise UsageError("the database has no models yet", hint="name one: --model dinov3")
    return names


def expanded_names(request: ModelRequest) -> list[str]:
    """The names of the models wished for, as far as they are known before anything is loaded."""
    names = [f"{name}@{output}" if output else name for name in request.names for output in request.outputs or ("",)]
    return [f"{name}@{request.dim}" if request.dim else name for name in names]


class ModelOpener:
    """Opens the models of one request over one connection."""

    def __init__(
        self,
        url: str,
        connection: Connection,
        request: ModelRequest,
        sources: Sequence[Source],
        limits: ImageLimits,
        reporter: Reporter,
    ) -> None:
        self.url, self.connection, self.request = url, connection, request
        self.sources, self.limits, self.reporter = sources, limits, reporter
        self.loader = Loader(request.placement, reporter.say)
        self.announced: set[str] = set()

    def find(self, name: str, output: str | None) -> ResolvedModel:
        """Find a model and load its network; its licence is told before that, where it is new."""
        stored, spec = look_up(self.connection, name, self.request.checkpoint)
        if self.request.store_as is not None and find_model(self.connection, name) is None:
            spec = lookup.resolve(
                name, self.request.checkpoint
            )  # anew, whatever is stored by the name it has by itself
        if stored is None and spec.name not in self.announced:
            self.announced.add(spec.name)
            self.reporter.say(f"{spec.name}: licence {spec.licence}")
        anew = self.request.store_as is not None
        made = None if anew else made_by(self.connection, stored, self.request.checkpoint)
        encoder = self.loader.load(spec, made)
        if output is not None and output != main_output(spec, encoder):
            spec = spec.with_output(output)
            encoder = self.loader.load(spec)
            stored = find_model(self.connection, spec.name)
        if self.request.store_as is not None and self.request.dim is None:
            stored = None
        if stored is not None and stored.full_dim is None and stored.fingerprint is not None:
            check_fingerprint(stored, encoder, None)
        if self.request.dim is None:
            return ResolvedModel(spec, encoder, None, stored)
        if spec.storage == "bit":
            raise ModelError(f"{spec.name} is a hash: its bits cannot be reduced", hint="leave --dim out")
        if stored is not None and stored.full_dim is not None:
            raise UsageError(f"{stored.name} is reduced already", hint="name the model that it was made of")
        reduced = None if self.request.store_as else find_model(self.connection, f"{spec.name}@{self.request.dim}")
        self._check_kind(reduced)
        return ResolvedModel(spec, encoder, stored, reduced)

    def store(self, found: ResolvedModel) -> LoadedModel:
        """The model in the database, which is added where it is not there."""
        if found.stored is not None:
            return open_stored(self.connection, found.stored, found.spec, found.encoder)
        if self.request.dim is not None:
            return self._add_reduced(found, self.request.dim)
        return store_model(
            self.connection, found.spec, found.encoder, self.request.store_as, normalize=self.request.normalize,
            claim=self.request.claim,
        )  # fmt: skip

    def check_exported(self, encoders: Sequence[Encoder]) -> None:
        """Compare what runs in int8 with fp32, on the user's own images."""
        exported = [encoder for encoder in encoders if hasattr(encoder, "check") and encoder.dtype == "int8"]
        for encoder in {id(encoder): encoder for encoder in exported}.values():
            sample = prepared_sample(encoder, self.sources, TRIED_IMAGES, self.limits)
            pictures = list(islice(sample, CHECKED_IMAGES))
            if not pictures:
                raise SourceError("no image could be read to check int8 on", hint="run without --dtype int8")
            lowest = encoder.check(pictures)
            self.reporter.say(
                f"{encoder.spec.name} in int8: lowest cosine with fp32 {lowest:.4f} over {len(pictures)} images"
            )

    def _add_reduced(self, found: ResolvedModel, dim: int) -> LoadedModel:
        """Fit on stored vectors where there are enough, else on a sample of the sources; fill from stored ones."""
        output = main_output(found.spec, found.encoder)
        check_dim(found.encoder.dims[output], dim)
        kind = self.request.reduction or "pca"
        needed = reduced_models.min_sample(dim, kind)
        vectors = None if found.base is None else reduced_models.stored_sample(self.connection, found.base)
        if self.sources and (vectors is None or len(vectors) < needed):
            batch_size = self.request.batch_size or found.spec.batch_size
            sample = reduced_models.embedded_sample(found.encoder, output, batch_size, self.sources, dim, self.limits)
            vectors = sample if vectors is None or len(sample) > len(vectors) else vectors
        if vectors is None:
            raise ModelError(
                f"there are no vectors of {found.spec.name} to fit on",
                hint=f"pgimgsearch ingest DIR --model {found.spec.name}, and then add it; or fit on a sample of the "
                f"images: pgimgsearch ingest DIR --model {found.spec.name} --dim {dim}",
            )
        reduction, recall = reduced_models.fit_and_measure(vectors, dim, kind)
        name = self.request.store_as or f"{found.spec.name}@{dim}"
        model = store_reduced_model(self.connection, found.spec, found.encoder, reduction, recall, name)
        self.reporter.say(
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
                taken = reduced_models.fill_reduced_model(self.connection, reader, base, model)
        except BaseException:
            discard_model(self.connection, model.stored)
            raise
        self.reporter.say(f"{taken} vectors taken over from {base.name}")

    def _check_kind(self, reduced: StoredModel | None) -> None:
        kept = None if reduced is None else reduction_of(self.connection, reduced)
        if reduced is not None and kept is not None and self.request.reduction not in {None, kept.kind}:
            raise UsageError(
                f"{reduced.name} is there, reduced by {kept.kind}",
                hint="leave --reduction out, or store another: pgimgsearch models add NAME --dim N --reduction "
                f"{self.request.reduction} --as NAME",
            )
