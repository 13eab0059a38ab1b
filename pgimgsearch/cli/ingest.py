"""``pgimgsearch ingest``: pictures into the database."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgimgsearch.cli import ingest_report
from pgimgsearch.cli.ingest_report import BESIDE
from pgimgsearch.cli.terminal import (
    AsideOption,
    DeviceOption,
    DimOption,
    DtypeOption,
    PreprocessOption,
    ReductionOption,
    RevisionOption,
    RuntimeOption,
    Terminal,
    TrustOption,
    WeightsOption,
    terminal_of,
)
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import InterruptedRun, UsageError

if TYPE_CHECKING:
    from pgimgsearch.embeddings.loaded_model import LoadedModel
    from pgimgsearch.ingest.run import Options, Refine
    from pgimgsearch.sources.source import Source


def ingest(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, pictures, addresses (s3://, gs://, hf://, https://), WebDataset tars, Parquet of images.",
            metavar="SOURCE...",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model; several share one decoding. Default: the alias default."),
    ] = None,
    all_models: Annotated[
        bool, typer.Option("--all-models", help="All stored models that are building or ready, as during a switch.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(help="The model's outputs, with commas: projection,hidden. Each is a model of its own."),
    ] = None,
    dim: DimOption = None,
    reduction: ReductionOption = None,
    weights: WeightsOption = None,
    revision: RevisionOption = None,
    preprocess: PreprocessOption = None,
    trust: TrustOption = False,
    list_file: Annotated[
        str | None,
        typer.Option(
            "--list",
            envvar="PGIMGSEARCH_INGEST_LIST",
            help="A file of paths and URLs: lines, CSV or JSONL; - is stdin.",
        ),
    ] = None,
    from_sql: Annotated[
        str | None,
        typer.Option(help="A query of paths and URLs: path or url, external_id, group, caption, metadata."),
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="The collection. Default: the folder's.")
    ] = None,
    caption_from: Annotated[Path | None, typer.Option(help="Captions by path: CSV or JSONL.")] = None,
    metadata: Annotated[Path | None, typer.Option(help="Metadata by path: CSV or JSONL.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="folder, a metadata key, or a pattern with one group over the path.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove images whose files are gone.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try files again that failed or were skipped.")
    ] = False,
    skip_duplicates: Annotated[
        bool, typer.Option("--skip-duplicates", help="Refuse pictures of which a copy is stored, or came before.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at so many files only.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    runtime: RuntimeOption = "torch",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures a forward pass; halved when they do not fit. Default: the best found."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read and decode. Default: all cores.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="local: this machine; ray: a cluster (RAY_ADDRESS), or a local one.")
    ] = "local",
    ray_workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of --engine ray. Default: one a GPU, else one.")
    ] = None,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Larger pictures fail, undecoded.")] = 100,
    max_megabytes: Annotated[float, typer.Option(min=0.01, help="Larger files fail, unread.")] = 256,
    aside: AsideOption = None,
    index_after: Annotated[
        bool,
        typer.Option("--index/--no-index", envvar="PGIMGSEARCH_INGEST_INDEX", help="Build missing indexes at the end."),
    ] = True,
) -> None:
    """Embed pictures and store their vectors. A second run does only what is new."""
    terminal = terminal_of(context)
    _check(context.params)
    from pgimgsearch.embeddings import open_models as opening
    from pgimgsearch.ingest import dry_run as preview  # Pillow and NumPy
    from pgimgsearch.ingest import run
    from pgimgsearch.ingest.run import Options
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.sources.limits import ImageLimits
    from pgimgsearch.sources.parse import named

    found, refine = named(sources or [], list_file), _refinements(caption_from, metadata, group_by)
    options = Options(
        collection=collection, workers=workers or Options().workers, limit=limit, prune=prune,
        retry_failed=retry_failed, skip_duplicates=skip_duplicates,
        limits=ImageLimits(int(max_megapixels * 1e6), int(max_megabytes * 1e6)),
    )  # fmt: skip
    with database_url(terminal.settings) as url:
        if from_sql:
            found.append(_query(url, from_sql))
        totals = [source.count() for source in found]
        with connect(url) as connection:
            names = _all_models(connection) if all_models else model or _default_model(connection)
        wish = opening.Wish(
            names, tuple(name.strip() for name in output.split(",")) if output else (), dim, reduction,
            Checkpoint(weights, revision, preprocess, trust), Placement(device, dtype, runtime), batch_size,
        )  # fmt: skip
        with connect(url) as connection, connection.transaction(force_rollback=True):
            for source in found:  # that one has no place is said before another has come
                store.open_collection(connection, collection, source.root, source.default_collection)
        if dry_run:
            for source in found:
                ingest_report.tell(
                    terminal, preview.preview(url, source, opening.expanded(wish), options, refine=refine)
                )
            return
        models = opening.open_models(url, wish, found, options.limits, terminal.talk)
        if aside or (aside is None and index_after and not skip_duplicates):
            options = replace(options, aside=_beside(terminal, url, models, found, totals, options, wished=aside))
        bring = run.ingest
        if engine == "ray":
            from pgimgsearch.ingest import ray as on_ray

            bring = partial(on_ray.ingest, wish=wish, workers=ray_workers)
        for source, total in zip(found, totals, strict=True):
            with terminal.progress(source.label, min(total, limit) if total and limit else total) as bar:
                show = ingest_report.pace(terminal, models, total, bar)
                report = bring(url, source, models, options, refine=refine, progress=show, tell=terminal.talk)
            ingest_report.tell(terminal, report)
            if engine == "local":
                ingest_report.tell_binding(terminal, report, options.workers, models)
            if report.status == "interrupted":
                raise InterruptedRun(hint="run the same command again to go on")
        if index_after:
            ingest_report.build_indexes(terminal, url, [model.stored.name for model in models])


def _beside(
    terminal: Terminal, url: str, models: "list[LoadedModel]", sources: "list[Source]", totals: list[int | None],
    options: "Options", *, wished: bool | None,
) -> frozenset[str]:  # fmt: skip
    """The models whose rows go beside the live table."""
    from pgimgsearch.ingest import load_target as beside

    files = [min(total, options.limit) if total and options.limit else total for total in totals]
    names: set[str] = set()
    with connect(url) as connection:

        def new(model: StoredModel) -> int:
            counted = zip(sources, files, strict=True)
            return sum(beside.coming(connection, one, count, options.collection, model) for one, count in counted)

        for model in models:
            stored = model.stored
            if not wished and model.encoder.device == "cpu":
                continue  # a network on a CPU is slower than a live index
            if beside.is_chosen(connection, stored, partial(new, stored), wished):
                names.add(stored.name)
                terminal.talk(BESIDE.format(stored.name))
            elif wished:
                terminal.talk(f"{stored.name} has no index that could hold it up, and gets its rows at once")
    return frozenset(names)


def _check(asked: Mapping[str, Any]) -> None:
    """Refuse options that do not go together, by the names of the parameters."""
    lists = [asked["list_file"], asked["from_sql"]]
    if not (asked["sources"] or any(lists)):
        raise UsageError("nothing to ingest", hint="name a folder: pgimgsearch ingest ./photos --model dinov3")
    if asked["prune"] and any(lists) and (asked["sources"] or all(lists) or not asked["collection"]):
        raise UsageError(
            "--prune with a list or a query needs it to be the only source, and --collection",
            hint="what is not listed is removed from that collection",
        )
    if asked["aside"] and not asked["index_after"]:
        raise UsageError("--aside with --no-index would never be seen", hint="leave one of them out")
    if asked["aside"] and asked["skip_duplicates"]:
        raise UsageError(
            "--skip-duplicates compares with what can be searched, and --aside writes what cannot be yet",
            hint="leave one of them out",
        )
    if asked["all_models"] and (asked["model"] or asked["output"]):
        raise UsageError("--all-models names every model and output already", hint="leave --model and --output out")
    for option in ("weights", "revision", "preprocess", "dim"):
        if asked[option] is not None and len(asked["model"] or []) != 1:
            raise UsageError(
                f"--{option} belongs to exactly one --model", hint="add the others with: pgimgsearch models add"
            )
    if asked["ray_workers"] is not None and asked["engine"] != "ray":
        raise UsageError("--ray-workers belongs to --engine ray", hint="threads of this machine are --workers")
    if asked["reduction"] is not None and asked["dim"] is None:
        raise UsageError("--reduction needs --dim", hint="say to how many dimensions, for example --dim 256")


def _query(url: str, query: str) -> "Source":
    from psycopg.rows import dict_row

    from pgimgsearch.sources.source import query_source

    def rows(text: str) -> Iterator[dict[str, object]]:
        with connect(url) as connection, connection.transaction():
            connection.execute("set transaction read only")
            with connection.cursor("ingest", row_factory=dict_row) as cursor:
                yield from cursor.execute(text)

    return query_source(query, rows)


def _refinements(caption_from: Path | None, metadata: Path | None, group_by: str | None) -> "Refine":
    """Captions, metadata and groups, in the order in which one may need the other."""
    from pgimgsearch.sources import sidecar
    from pgimgsearch.sources import source as scan

    captions = sidecar.read_sidecar(caption_from) if caption_from else None
    about = sidecar.read_sidecar(metadata) if metadata else None

    def refine(files: "Iterator[scan.ScannedFile]") -> "Iterator[scan.ScannedFile]":
        if captions is not None:
            files = sidecar.with_captions(files, captions)
        if about is not None:
            files = sidecar.with_metadata(files, about)
        return sidecar.with_groups(files, group_by) if group_by else files

    return refine


def _default_model(connection: Connection) -> list[str]:
    if store.find_model(connection, "default") is None:
        raise UsageError("no model was named, and the database has none yet", hint="name one: --model dinov3")
    return ["default"]


def _all_models(connection: Connection) -> list[str]:
    may = store.can_change(connection)  # complete a model that was only declared
    names = [
        model.name for model in store.models(connection)
        if model.status in {"building", "ready"} and (may or model.fingerprint is not None)
    ]  # fmt: skip
    if not names:
        raise UsageError("the database has no models yet", hint="name one: --model dinov3")
    return names
