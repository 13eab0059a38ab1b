"""``models``: what there is, what is stored, adding, fetching, verifying and removing."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

import typer

from pgimgsearch.cli.stored import stored_model
from pgimgsearch.cli.terminal import (
    DeviceOption,
    DimOption,
    Group,
    PreprocessOption,
    ReductionOption,
    RevisionOption,
    TorchDtypeOption,
    TrustOption,
    WeightsOption,
    terminal_of,
)
from pgimgsearch.database import models as store
from pgimgsearch.database.connection import connect
from pgimgsearch.database.models import (
    canary_of,
    coverage_table,
    find_model,
    get_model,
    list_aliases,
    reduction_of,
    remove_model,
)
from pgimgsearch.database.url import database_url
from pgimgsearch.errors import ModelError, UsageError
from pgimgsearch.models import catalog, lookup
from pgimgsearch.models import catalog_table as table
from pgimgsearch.reporter import Reporter

LEAST_COSINE = 0.99999
COMPARED_PICTURES = 64

app = typer.Typer(
    cls=Group, no_args_is_help=True, help="List, add, verify, switch and remove models, and point aliases at them."
)


@app.command("list")
def list_models(
    context: typer.Context,
    catalog_too: Annotated[
        bool,
        typer.Option("--all", help="Also models that are not stored."),
    ] = False,
) -> None:
    """List stored models with their coverage; --all adds the catalog."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = {model.name: model for model in store.list_models(connection)}
        covered = {row["model"]: row for row in coverage_table(connection, exact=False)}
        names = list_aliases(connection)
    rows: list[dict[str, object]] = [
        _about(model.name) | {
            "model": model.name, "dim": model.dim, "storage": model.storage, "text": model.has_text,
            "licence": model.licence, "status": model.status, "index": model.index_method,
            "embedded": covered[model.name]["embedded"], "missing": covered[model.name]["missing"],
            "aliases": ", ".join(alias for alias, name in names.items() if name == model.name),
        }
        for model in stored.values()
    ]  # fmt: skip
    columns = ["model", "dim", "storage", "text", "licence", "status", "index", "embedded", "missing", "aliases"]
    if catalog_too:
        rows += [
            _about(spec.name) | {"status": "gated" if spec.gated else "available"}
            for spec in catalog.CATALOG
            if spec.name not in stored
        ]
        columns = ["model", "dim", "text", "licence", "size", "status", "embedded", "good_for"]
    terminal.show(rows, columns)
    if not rows:
        terminal.notify('no model is stored yet; "pgimgsearch models list --all" shows what there is')


def _about(name: str) -> dict[str, object]:
    """What the catalog says of a model; of one outside it, nothing."""
    spec = lookup.find(name.partition("@")[0])
    if spec is None:
        return {"model": name, "size": "", "gated": False, "good_for": ""}
    return {"model": spec.name, "dim": spec.dim, "storage": spec.storage, "text": spec.text, "licence": spec.licence,
            "size": table.size_of(spec), "gated": spec.gated, "proof": spec.proof,
            "good_for": spec.good_for}  # fmt: skip


@app.command()
def show(context: typer.Context, name: Annotated[str, typer.Argument(help="A stored or a catalog model.")]) -> None:
    """Show everything known about a model: how it was verified, its table and its view."""
    from pgimgsearch.embeddings.registry import find_stored

    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        stored = find_stored(connection, name)
        canary = None if stored is None else canary_of(connection, stored)
        reduction = None if stored is None else reduction_of(connection, stored)
    spec = lookup.find(name.partition("@")[0]) if stored is None else lookup.find(stored.name.partition("@")[0])
    if stored is None:
        spec = lookup.resolve(name)
    own = stored is not None and stored.weights is not None
    verified = {"verified": table.PROOFS["own" if own else spec.proof if spec else "none"]}
    if stored is None:
        assert spec is not None
        terminal.show_one(asdict(spec) | {"size": table.size_of(spec)} | verified)
        return
    shown = {field.name: getattr(stored, field.name) for field in fields(stored)} | verified
    shown["table"] = f"imgsearch.{shown.pop('table_name')}"
    shown["view"] = f"imgsearch.{shown.pop('view_name')}"
    if reduction is not None:
        shown |= {"reduction": reduction.kind, "reduction_recall": reduction.recall}
    if canary is not None:
        shown |= {"canary_made_with": canary.made_with}
    terminal.show_one(shown)


@app.command()
def add(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="A catalog name, or timm:NAME, open_clip:ARCH/TAG, hf:REPO, onnx:FILE, PREFIX:/folder."),
    ],
    weights: WeightsOption = None,
    revision: RevisionOption = None,
    preprocess: PreprocessOption = None,
    trust: TrustOption = False,
    output: Annotated[str | None, typer.Option(help="Another output of the model: NAME@OUTPUT.")] = None,
    dim: DimOption = None,
    reduction: ReductionOption = None,
    stored_name: Annotated[str | None, typer.Option("--as", help="The name to store it under.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="Scale vectors to length one.")] = True,
    device: DeviceOption = "auto",
    dtype: TorchDtypeOption = "auto",
) -> None:
    """Load a model and create its table. With --dim, fill it from the model's stored vectors."""
    from pgimgsearch.embeddings.open_models import ModelRequest, add_model, expanded_names
    from pgimgsearch.embeddings.registry import find_stored

    terminal = terminal_of(context)
    from pgimgsearch.indexing.after_load import after_load
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.models.spec import Checkpoint

    if reduction is not None and dim is None:
        raise UsageError("--reduction needs --dim", hint="give the number of dimensions, for example --dim 256")
    checkpoint = Checkpoint(weights, revision, preprocess, trust)
    request = ModelRequest(
        [name], (output,) if output else (), dim, reduction, checkpoint, Placement(device, dtype),
        store_as=stored_name, normalize=normalize,
    )  # fmt: skip
    with database_url(terminal.settings) as url:
        with connect(url) as connection:
            wanted = stored_name or expanded_names(request)[0]
            if (find_model if stored_name else find_stored)(connection, wanted):
                raise UsageError(f"{wanted} is already there", hint="choose another name with --as NAME")
        model = add_model(url, request, Reporter(terminal.notify))
        if dim is not None:  # it is filled already
            after_load(url, [model.stored.name], remote=bool(terminal.settings.db))
    added = model.stored
    terminal.show_one({"model": added.name, "dim": added.dim, "licence": added.licence,
                       "table": f"imgsearch.{added.table_name}", "view": f"imgsearch.{added.view_name}"})  # fmt: skip


@app.command()
def fetch(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Models, by any name that ingest takes.", metavar="NAME...")],
    to: Annotated[Path | None, typer.Option(help="A bundle for machines without a network.")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--from", help="A bundle to read them from."),
    ] = None,
    revision: RevisionOption = None,
) -> None:
    """Download models ahead of use, into a bundle or from one. Large files and bundles are checked."""
    from pgimgsearch.models.weights.offline_bundle import install

    terminal = terminal_of(context)
    if to is not None and bundle is not None:
        raise UsageError("--to makes a bundle and --from uses one", hint="leave one of them out")
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.models.weights import offline_bundle as bundles

    specs = [lookup.resolve(name, Checkpoint(revision=revision)) for name in names]
    rows = []
    for spec in specs:
        if spec.licence.startswith("CC-BY-NC"):
            terminal.notify(f"{spec.name}: {spec.licence}")
        entry = bundles.fetch(spec, to) if bundle is None else install(spec, bundle)
        size = sum(file["bytes"] for file in entry["files"].values())
        rows.append({"model": spec.name, "revision": entry["revision"], "files": len(entry["files"]),
                     "megabytes": round(size / 1e6, 1), "licence": spec.licence})  # fmt: skip
    terminal.show(rows, ["model", "revision", "files", "megabytes", "licence"])


@app.command()
def verify(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model, by any name that ingest takes.")],
    weights: WeightsOption = None,
    revision: RevisionOption = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images to compare on. Default: drawn images.")
    ] = None,
) -> None:
    """Compare a model with the reference library's own call on its real weights, downloaded if necessary."""
    from pgimgsearch.embeddings.registry import look_up

    terminal = terminal_of(context)
    from pgimgsearch.models.backends import backends
    from pgimgsearch.models.load import require
    from pgimgsearch.models.spec import Checkpoint
    from pgimgsearch.sources.folder import folder_source
    from pgimgsearch.sources.limits import DEFAULT_LIMITS
    from pgimgsearch.sources.sample import sample_images

    with database_url(terminal.settings) as url, connect(url) as connection:
        _, spec = look_up(connection, name, Checkpoint(weights, revision))
    require(spec)
    pictures = None
    if images is not None:
        source = folder_source(images)
        source.count()  # raises where there are none
        pictures = list(sample_images([source], COMPARED_PICTURES, DEFAULT_LIMITS))
    from pgimgsearch.models import reference

    found = reference.compare(spec, pictures)
    if found is None:
        raise ModelError(
            f"no library here has a reference for {spec.name}",
            hint=backends()[spec.backend].no_reference,
        )
    good = all(cosine >= LEAST_COSINE for cosine in found.cosines.values()) and found.grey_levels <= 1.0
    terminal.show_one({"model": spec.name, "reference": found.how, "images": found.pictures,
                       "cosines": found.cosines, "grey_levels": found.grey_levels, "equal": good})  # fmt: skip
    if not good:
        raise ModelError(
            f"{spec.name} is not equal to its reference: cosines {found.cosines}, {found.grey_levels:.2f} grey levels",
            hint=f"at least {LEAST_COSINE} and at most one grey level are needed",
        )


@app.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A stored model.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove a model with its table, view, index and cached texts."""
    terminal = terminal_of(context)
    with database_url(terminal.settings) as url, connect(url) as connection:
        model = stored_model(connection, name)
        if not yes:
            typer.confirm(f"Remove {model.name} with all its vectors?", abort=True, err=True)
        remove_model(connection, model.name)
    terminal.notify(f"removed {model.name}")


@app.command()
def alias(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="default, text, duplicates, or one of your own. Default: list all.")
    ] = None,
    model: Annotated[str | None, typer.Argument(help="The model to point it at. Default: show its model.")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove the alias.")] = False,
) -> None:
    """Point an alias at a model, or list the aliases. Applications ask for models by alias."""
    terminal = terminal_of(context)
    if drop and (model or not name):
        raise UsageError(
            "--drop takes one alias and no model", hint=f"pgimgsearch models alias {name or 'NAME'} --drop"
        )
    with database_url(terminal.settings) as url, connect(url) as connection:
        if name is None:
            rows = [{"alias": alias, "model": meant} for alias, meant in list_aliases(connection).items()]
            terminal.show(rows, ["alias", "model"])
            return
        if drop or model:
            stored = stored_model(connection, model) if model else None
            connection.execute("select imgsearch.set_alias(%s, %s)", [name, stored and stored.name])
        terminal.show_one({name: None if drop else get_model(connection, name).name})
