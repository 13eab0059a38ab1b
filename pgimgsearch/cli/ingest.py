"""``pgimgsearch ingest``: embed images and store them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgimgsearch.cli import ingest_report
from pgimgsearch.cli.terminal import (
    SPEED,
    DeviceOption,
    DimOption,
    DtypeOption,
    PreprocessOption,
    ReductionOption,
    RevisionOption,
    RuntimeOption,
    ShadowTableOption,
    Terminal,
    TrustOption,
    WeightsOption,
    terminal_of,
)
from pgimgsearch.database.collections import open_collection
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import InterruptedRun, SourceError, UsageError

if TYPE_CHECKING:
    from pgimgsearch.embeddings.deferred_models import DeferredModels
    from pgimgsearch.ingest.load_target import CountedSource
    from pgimgsearch.ingest.run import Options, Report
    from pgimgsearch.sources.source import Source

HELP = """Embed images and store their vectors. Run it again at any time: it does only what is new.

Examples:

  pgimgsearch ingest ./photos --model dinov3

  pgimgsearch ingest s3://bucket/photos -c shop --caption-from captions.csv

  pgimgsearch ingest --from-sql "select sku as key, url from product" -c shop
"""
SOURCES, MODELS, ATTRIBUTES, RUN = "Sources", "Models", "Attributes", "What to do"


def ingest(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, images, URLs (s3://, gs://, hf://, https://), WebDataset tars, Parquet files of images.",
            metavar="SOURCE...",
        ),
    ] = None,
    list_: Annotated[
        str | None,
        typer.Option(
            "--list",
            rich_help_panel=SOURCES,
            help="A file of paths and URLs: lines, CSV or JSONL; - is stdin.",
        ),
    ] = None,
    from_sql: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SOURCES, help="A query with a column path or url; optional: key, group, caption, metadata."
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=SOURCES, help="Only files that match, as in .gitignore.", metavar="PATTERN"),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=SOURCES, help="Leave out files and folders that match, as in .gitignore.", metavar="PATTERN"
        ),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(rich_help_panel=SOURCES, help="The column of Parquet that holds the images.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(rich_help_panel=SOURCES, help="The column of Parquet that holds captions.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=SOURCES, help="Process at most N files.", metavar="N")
    ] = None,
    max_megapixels: Annotated[
        float, typer.Option(min=0.01, rich_help_panel=SOURCES, help="Larger images fail, undecoded.")
    ] = 100,
    max_megabytes: Annotated[
        float, typer.Option(min=0.01, rich_help_panel=SOURCES, help="Larger files fail, unread.")
    ] = 256,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            rich_help_panel=MODELS,
            help="A model; several share one decoding. Default: the alias default.",
        ),
    ] = None,
    all_models: Annotated[
        bool,
        typer.Option("--all-models", rich_help_panel=MODELS, help="All stored models that are building or ready."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MODELS, help="Outputs, comma-separated: projection,hidden. Each is stored as a model."
        ),
    ] = None,
    dim: DimOption = None,
    reduction: ReductionOption = None,
    weights: WeightsOption = None,
    revision: RevisionOption = None,
    preprocess: PreprocessOption = None,
    trust: TrustOption = False,
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", rich_help_panel=ATTRIBUTES, help="The collection. Default: the folder's."),
    ] = None,
    caption_from: Annotated[
        Path | None, typer.Option(rich_help_panel=ATTRIBUTES, help="Captions by path: CSV or JSONL.")
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(rich_help_panel=ATTRIBUTES, help="Metadata by path: CSV or JSONL.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=ATTRIBUTES, help="folder, a metadata key, or a pattern with one group over the path."
        ),
    ] = None,
    exif: Annotated[
        bool,
        typer.Option(
            "--exif/--no-exif",
            rich_help_panel=ATTRIBUTES,
            help="Take date, place and camera of EXIF into the metadata.",
        ),
    ] = True,
    prune: Annotated[
        bool, typer.Option("--prune", rich_help_panel=RUN, help="Delete images whose files are gone.")
    ] = False,
    prune_all: Annotated[
        bool, typer.Option("--prune-all", rich_help_panel=RUN, help="The same, however many they are.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", rich_help_panel=RUN, help="Retry files that failed or were skipped.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", rich_help_panel=RUN, help="Read files again whose size and time are the same.")
    ] = False,
    skip_duplicates: Annotated[
        bool, typer.Option("--skip-duplicates", rich_help_panel=RUN, help="Reject new duplicates of stored images.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=RUN, help="Show what would be done, and do nothing.")
    ] = False,
    shadow_table: ShadowTableOption = None,
    index: Annotated[
        bool, typer.Option("--index/--no-index", rich_help_panel=RUN, help="Build missing indexes at the end.")
    ] = True,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    runtime: RuntimeOption = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=SPEED, help="Images per forward pass; halved if memory runs out."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=SPEED, help="Threads that read and decode. Default: all cores."),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(rich_help_panel=SPEED, help="local: this machine; ray: the cluster of RAY_ADDRESS, or a new one."),
    ] = "local",
    ray_workers: Annotated[
        int | None,
        typer.Option(
            min=1, rich_help_panel=SPEED, help="Processes of --engine ray. Default: one for each GPU, else one."
        ),
    ] = None,
) -> None:
    """See HELP."""
    terminal = terminal_of(context)
    _check(context.params)
    from pgimgsearch.embeddings.open_models import (
        ModelRequest,
        all_model_names,
        default_model_names,
        defer_models,
        expanded_names,
    )
    from pgimgsearch.ingest import dry_run as trial
    from pgimgsearch.ingest import run
    from pgimgsearch.ingest.load_target import CountedSource, choose_shadows
    from pgimgsearch.ingest.run import Options
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.reporter import Reporter
    from pgimgsearch.sources.limits import ImageLimits
    from pgimgsearch.sources.parse import Columns, parse_sources
    from pgimgsearch.sources.selection import Selection
    from pgimgsearch.sources.sidecar import Sidecar, refinements
    from pgimgsearch.sources.sql import sql_source

    found = parse_sources(
        sources or [], list_, Selection(include or (), exclude or ()), Columns(image_column, caption_column)
    )
    options = Options(
        collection=collection, workers=workers or Options().workers, limit=limit,
        prune=prune or prune_all, prune_all=prune_all,
        retry_failed=retry_failed, rehash=rehash, exif=exif, skip_duplicates=skip_duplicates,
        limits=ImageLimits(int(max_megapixels * 1e6), int(max_megabytes * 1e6)),
    )  # fmt: skip
    folders = [source.scope or source.root or "" for source in found]
    captions = Sidecar(caption_from, folders, "caption") if caption_from else None
    attributes = Sidecar(metadata, folders) if metadata else None
    sidecars = [sidecar for sidecar in (captions, attributes) if sidecar is not None]
    for said in (one for sidecar in sidecars for one in sidecar.refused()):
        terminal.notify(said)
    refine = refinements(captions, attributes, group_by)
    with database_url(terminal.settings) as url:
        if from_sql:
            found.append(sql_source(url, from_sql))
        with connect(url) as connection:
            names = all_model_names(connection) if all_models else model or default_model_names(connection)
            _check_collections(connection, found, collection)
        request = ModelRequest(
            names, tuple(name.strip() for name in output.split(",")) if output else (), dim, reduction,
            Checkpoint(weights, revision, preprocess, trust), Placement(device, dtype, runtime), batch_size,
        )  # fmt: skip
        counted = [CountedSource.of(source, options.limit, may_be_empty=options.prune) for source in found]
        if dry_run:
            for source in found:
                report = trial.dry_run(url, source, expanded_names(request), options, refine=refine)
                ingest_report.show_report(terminal, report)
            return
        models = defer_models(url, request, found, options.limits, Reporter(terminal.notify))
        if shadow_table is not False and (shadow_table or (index and not skip_duplicates)):
            shadows = choose_shadows(url, models, counted, collection, shadow_table, Reporter(terminal.notify))
            options = replace(options, shadow=shadows)
        ingest_source = partial(run.ingest, refine=refine)
        if engine == "ray":
            from pgimgsearch.ingest.ray import ingest_on_ray

            ingest_source = partial(ingest_on_ray, refine=refine, request=request, workers=ray_workers)
        reports = [_ingest_one(terminal, partial(ingest_source, url), one, models, options, engine) for one in counted]
        if index:
            ingest_report.complete_loads(terminal, url, [stored.name for stored in models.stored])
        if engine == "local" and limit is None:  # on a cluster each process has seen a part
            for said in (one for sidecar in sidecars for one in sidecar.told()):
                terminal.notify(said)
        _check_outcome(reports)


def _ingest_one(
    terminal: Terminal, ingest_source: "Callable[..., Report]", counted: "CountedSource", models: "DeferredModels",
    options: "Options", engine: str,
) -> "Report":  # fmt: skip
    source = counted.source
    with terminal.report(source.label, counted.files) as reporter:
        estimating = ingest_report.with_estimate(models, counted.files, reporter)
        report = ingest_source(source, models, options, reporter=estimating)
    ingest_report.show_report(terminal, report)
    if engine == "local" and models.loaded:
        ingest_report.show_bottleneck(terminal, report, options.workers, models.loaded)
    if report.status == "interrupted":
        raise InterruptedRun(hint="run the same command again to continue")
    return report


def _check(asked: Mapping[str, Any]) -> None:
    """Refuse options that do not go together, by the names of the parameters."""
    lists = [asked["list_"], asked["from_sql"]]
    if not (asked["sources"] or any(lists)):
        raise UsageError("nothing to ingest", hint="name a folder: pgimgsearch ingest ./photos --model dinov3")
    if (asked["include"] or asked["exclude"]) and not asked["sources"]:
        raise UsageError("--include and --exclude are about folders", hint="leave them out, or leave rows out")
    removes = asked["prune"] or asked["prune_all"]
    if removes and any(lists) and (asked["sources"] or all(lists) or not asked["collection"]):
        raise UsageError(
            "--prune with a list or a query needs it to be the only source, and --collection",
            hint="what is not listed is deleted from that collection",
        )
    if asked["shadow_table"] and not asked["index"]:
        raise UsageError("--shadow-table with --no-index would never be swapped in", hint="leave one of them out")
    if asked["shadow_table"] and asked["skip_duplicates"]:
        raise UsageError(
            "--skip-duplicates compares with live vectors, and those of --shadow-table are not live yet",
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
        raise UsageError("--reduction needs --dim", hint="give the number of dimensions, for example --dim 256")


def _check_collections(connection: Connection, sources: "list[Source]", collection: str | None) -> None:
    """Raise for a source that fits into no collection, before another one is ingested."""
    with connection.transaction(force_rollback=True):
        for source in sources:
            open_collection(connection, collection, source.root, source.default_collection)


def _check_outcome(reports: "list[Report]") -> None:
    """Raise SourceError where every file that was scanned failed."""
    scanned = sum(counts["scanned"] for report in reports for counts in report.counts.values())
    failed = sum(counts["failed"] for report in reports for counts in report.counts.values())
    if scanned and failed == scanned:
        raise SourceError("every file failed", hint="see why: select * from imgsearch.ingest_failure")
