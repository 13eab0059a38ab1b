"""What ``duplicates`` does before it answers: compare what is new, and say by which thresholds."""

from dataclasses import dataclass
from typing import Any

from pgimgsearch.cli.terminal import Terminal
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.thresholds import Calibration, calibration_of, store_calibration, with_thresholds
from pgimgsearch.errors import InterruptedRun, ModelError, SourceError, UsageError

SAMPLE = 30  # images that are edited where a threshold is measured by the way


def threshold_of(model: StoredModel, threshold: float | None, kinds: list[str] | None) -> float | None:
    """The threshold that the SQL function will use: the user's, else the model's own for the kinds wanted."""
    if threshold is not None:
        return threshold
    return model.similar if "similar" in (kinds or []) else model.near


@dataclass(frozen=True, slots=True)
class How:
    """How to compare what is new."""

    method: Any
    device: str
    workers: int
    anew: bool


def find_all(
    terminal: Terminal, url: str, models: list[StoredModel], threshold: float | None, kinds: list[str] | None,
    transforms: Any, how: How, collection: str | None,
) -> None:  # fmt: skip
    """Compare what is new with each model, the first by the threshold wanted, the others by that of the collection.

    All images are compared, of other collections too. A role that may not write, or not see all, asks without.
    """
    from pgimgsearch.duplicates.pairs import can_store_pairs, delete_pairs, exclusive_scan

    for model in models:
        with connect(url) as connection:
            judged = with_thresholds(connection, model, collection)
            cut = threshold_of(judged, threshold, kinds) if model is models[0] else judged.near
            remembers = can_store_pairs(connection)
            if transforms and not remembers:
                raise UsageError("--transformed has to remember pairs", hint="run it as the owner or a writer")
            if cut is None or not 0 <= cut <= 1 or not remembers:
                continue  # SQL says what is wrong
            if how.anew:
                with exclusive_scan(connection, model):
                    delete_pairs(connection, model)
        _find_new(terminal, url, model, cut, how)
        if transforms:
            _find_turned(terminal, url, model, cut, transforms, how)


def _find_new(terminal: Terminal, url: str, model: StoredModel, cut: float, how: How) -> None:
    from pgimgsearch.duplicates import find

    with terminal.report(f"compare ({model.name})", None) as reporter:
        found = find.find(url, model, cut, method=how.method, device=how.device, workers=how.workers, reporter=reporter)
    if found.compared:
        terminal.notify(
            f"{found.compared} images compared in {found.seconds:.1f} s ({found.method}), {found.new_pairs} new pairs, "
            f"{found.pairs} stored at or above {found.threshold:.4g}"
        )
    if found.compared and found.crowded:
        terminal.notify(
            f"{found.crowded} images have {found.most} pairs or more: of more, only those with the nearest are stored"
        )
    if found.interrupted:
        raise InterruptedRun(hint="run the same command again to go on")


def _find_turned(terminal: Terminal, url: str, stored: StoredModel, cut: float, transforms: Any, how: How) -> None:
    """Compare contents under transforms that were not applied yet; needs the model and the files."""
    from pgimgsearch.duplicates.transforms import find_transformed
    from pgimgsearch.embeddings.registry import open_model
    from pgimgsearch.models.encoder import Placement

    with connect(url) as connection:
        model = open_model(connection, stored.name, placement=Placement(how.device))
    with terminal.report(f"compare transformed ({stored.name})", None) as reporter:
        found = find_transformed(url, model, cut, transforms, how.workers, reporter)
    if found.compared or found.unreadable:
        terminal.notify(
            f"{found.compared} images compared under transforms, {found.new_pairs} new pairs; "
            f"{found.unreadable} files could not be read"
        )
    if found.interrupted:
        raise InterruptedRun(hint="run the same command again to go on")


def turns_of(text: str | None, models: list[str], agree: str) -> Any:
    """The transforms that --transformed names; none without it."""
    from pgimgsearch.duplicates.transforms import transforms_of

    if text is None:
        return {}
    wanted = {word.strip() for word in text.split(",")}
    if not wanted or wanted - {"mirror", "rotate"}:
        raise UsageError(f"--transformed {text} is not known", hint="mirror, rotate, or mirror,rotate")
    if len(models) > 1 and agree == "all":
        raise UsageError("--transformed asks one model, and all shall agree", hint="name one --model, or --agree any")
    return transforms_of("mirror" in wanted, "rotate" in wanted)


def calibrate_here(
    terminal: Terminal, connection: Connection, models: list[StoredModel], collection: str | None, device: str
) -> None:
    """Measure the thresholds of models on a collection (None: on all) where they were measured on others only.

    Where that is refused, the model's own are kept for it, so that it is not tried each time.
    """
    from pgimgsearch.duplicates.pairs import can_store_pairs

    for model in models:
        known = calibration_of(connection, model, collection)
        if known is None or known.fits or not can_store_pairs(connection):
            continue
        where = collection or "all collections"
        terminal.notify(
            f"the threshold of {model.name}, {known.near:.4g}, was measured {_measured_on(known)}: measuring it on "
            f"{where} as it is now, by edits of a sample"
        )
        try:
            _calibrate(terminal, connection, model, known, collection, device)
        except (ModelError, SourceError) as error:
            terminal.notify(f"{error}; {known.near:.4g} is used")


def _calibrate(
    terminal: Terminal, connection: Connection, model: StoredModel, known: Calibration, collection: str | None,
    device: str,
) -> None:  # fmt: skip
    from pgimgsearch.duplicates import calibrate as measuring
    from pgimgsearch.embeddings.registry import open_model
    from pgimgsearch.models.encoder import Placement

    contents = measuring.measurable(connection, model, collection)
    request = measuring.CalibrationRequest(
        known.precision, known.measured.get("similar_precision", known.precision), known.copies, SAMPLE,
        collection=collection,
    )  # fmt: skip
    with terminal.report(f"edit and embed ({model.name})", SAMPLE) as reporter:
        loaded = open_model(connection, model.name, placement=Placement(device))
        found = measuring.calibrate(connection, loaded, request, reporter)
    if found.problem is not None:
        store_calibration(
            connection, model, known.near, known.similar, known.precision, known.copies, len(contents),
            {"problem": str(found.problem)}, collection=collection, default=False,
        )  # fmt: skip
        raise found.problem
    measuring.store(connection, model, found, default=False)


def thresholds_told(
    connection: Connection, models: list[StoredModel], collection: str | None, threshold: float | None,
    kinds: list[str] | None,
) -> list[str]:  # fmt: skip
    """A line for each model: which threshold is used, and whether anybody measured it. Identical files need none."""
    if kinds == ["identical"]:
        return []
    lines = []
    for model in models:
        mine = threshold if model is models[0] else None
        cut = threshold_of(model, mine, kinds if model is models[0] else None)
        calibrated = calibration_of(connection, model, collection)
        if mine is not None:
            said = "as you say"
        elif calibrated is None:
            said = f"its own, not measured on your images: pgimgsearch models calibrate {model.name}"
        else:
            said = f"measured {_measured_on(calibrated)} for a precision of {calibrated.precision:.2f}"
            if "problem" in calibrated.measured:
                said = f"its own, as none could be measured {_measured_on(calibrated)}"
        if cut is not None:
            lines.append(f"model {model.name}, threshold {cut:.4g}, {said}")
    return lines


def _measured_on(calibration: Calibration) -> str:
    return (
        f"on {calibration.images} images of {calibration.collection or 'all collections'} "
        f"on {calibration.calibrated_at:%Y-%m-%d}"
    )
