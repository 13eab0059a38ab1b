"""What ``duplicates`` does before it answers: compare what is new, and say by which thresholds."""

from typing import Any

from pgimgsearch.cli.terminal import Terminal
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.store import StoredModel
from pgimgsearch.database.thresholds import calibration_of
from pgimgsearch.errors import InterruptedRun, UsageError


def threshold_of(model: StoredModel, threshold: float | None, kinds: list[str] | None) -> float | None:
    """The threshold that the SQL function will use: the user's, else the model's own for the kinds wanted."""
    if threshold is not None:
        return threshold
    return model.similar if "similar" in (kinds or []) else model.near


def find_new(
    terminal: Terminal, url: str, model: StoredModel, cut: float | None, method: Any, device: str, workers: int
) -> None:
    """Compare what is new; a role that may not write asks without, and everything is found anew each time."""
    from pgimgsearch.duplicates import find

    with connect(url) as connection:
        if cut is None or not 0 <= cut <= 1 or not find.may_remember(connection):
            return
    with terminal.progress(f"compare ({model.name})", None) as bar:
        found = find.find(
            url, model, cut, method=method, device=device, workers=workers, tell=terminal.talk, progress=bar
        )
    if found.compared:
        terminal.talk(
            f"{found.compared} images compared in {found.seconds:.1f} s ({found.method}), {found.new_pairs} new pairs, "
            f"{found.pairs} remembered at {found.threshold:.4g} or more"
        )
    if found.interrupted:
        raise InterruptedRun(hint="run the same command again to go on")


def find_turned(
    terminal: Terminal, url: str, stored: StoredModel, cut: float | None, turns: Any, device: str, workers: int
) -> None:
    """Compare what was not compared turned yet; needs the model, the files, and the right to remember."""
    from pgimgsearch.duplicates import turns as turning
    from pgimgsearch.duplicates.find import may_remember
    from pgimgsearch.models.encoder import Placement
    from pgimgsearch.pipeline import register

    with connect(url) as connection:
        if cut is None or not may_remember(connection):
            raise UsageError("--invariant has to remember pairs", hint="run it as the owner or a writer")
        model = register.open_model(connection, stored.name, placement=Placement(device))
    with terminal.progress(f"compare turned ({stored.name})", None) as bar:
        found = turning.find_turned(url, model, cut, turns, workers, bar)
    if found.compared or found.unreadable:
        terminal.talk(
            f"{found.compared} images compared turned, {found.new_pairs} new pairs; {found.unreadable} files could not "
            "be read"
        )
    if found.interrupted:
        raise InterruptedRun(hint="run the same command again to go on")


def turns_of(text: str) -> Any:
    """The ways to turn a picture that --invariant names."""
    from pgimgsearch.duplicates import turns

    wanted = {word.strip() for word in text.split(",")}
    if not wanted or wanted - {"mirror", "rotate"}:
        raise UsageError(f"--invariant {text} is not known", hint="mirror, rotate, or mirror,rotate")
    return turns.turns_of("mirror" in wanted, "rotate" in wanted)


def tell_thresholds(
    terminal: Terminal, connection: Connection, models: list[StoredModel], threshold: float | None,
    kinds: list[str] | None,
) -> None:  # fmt: skip
    """Say which threshold is used, and whether anybody measured it."""
    for model in models:
        own = threshold_of(model, None, kinds if model is models[0] else None)
        calibrated = calibration_of(connection, model)
        if threshold is not None and model is models[0]:
            said = "as you say"
        elif calibrated is None:
            said = f"its default, not measured on your images: pgimgsearch models calibrate {model.name}"
        else:
            said = (
                f"measured on {calibrated.images} images for a precision of {calibrated.precision:.2f} "
                f"on {calibrated.calibrated_at:%Y-%m-%d}"
            )
        cut = threshold if threshold is not None and model is models[0] else own
        if cut is not None:
            terminal.talk(f"model {model.name}, threshold {cut:.4g}, {said}")
