"""Mirrored and rotated copies: every picture is embedded again, turned, and compared with all others."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL.Image import Transpose

from pgimgsearch.concurrency import ordered_map, stop_signals
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.duplicates.calibration_data import images
from pgimgsearch.duplicates.find import Progress
from pgimgsearch.duplicates.pairs import begin, locked, patient
from pgimgsearch.embeddings.binary_copy import literal
from pgimgsearch.embeddings.loaded_model import LoadedModel, why_not
from pgimgsearch.models.encoder import SkippedPicture
from pgimgsearch.models.runtime.batches import Batches
from pgimgsearch.sources.open_image import open_image

BLOCK = 64  # pictures whose copies are compared at once

MIRRORED = {"mirrored": Transpose.FLIP_LEFT_RIGHT}
ROTATED = {"rotated 90": Transpose.ROTATE_90, "rotated 180": Transpose.ROTATE_180, "rotated 270": Transpose.ROTATE_270}
BOTH = {
    "mirrored, rotated 90": Transpose.TRANSPOSE, "mirrored, rotated 180": Transpose.FLIP_TOP_BOTTOM,
    "mirrored, rotated 270": Transpose.TRANSVERSE,
}  # fmt: skip

Prepared = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Turned:
    """Pictures that were compared, turned; those that could not be read; pairs that are new."""

    compared: int
    unreadable: int
    new_pairs: int
    interrupted: bool


def turns_of(mirror: bool, rotate: bool) -> dict[str, Transpose]:
    """The ways to turn a picture; mirrored and rotated both, also one after the other."""
    return (MIRRORED if mirror else {}) | (ROTATED if rotate else {}) | (BOTH if mirror and rotate else {})


def find_turned(
    url: str, model: LoadedModel, threshold: float, turns: dict[str, Transpose], workers: int, progress: Progress
) -> Turned:
    """Compare what was compared upright and not turned yet; after ``find``. What is finished is committed.

    It goes down to the threshold to which pairs are remembered, so that no later run has to ask again. What cannot be
    read now is counted, and tried again the next time.
    """
    network = Batches(model.encoder, model.batch_size)
    compared = new_pairs = read = 0
    with (
        connect(url) as connection,
        locked(connection, model.stored),
        stop_signals() as stopped,
        ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads,
    ):
        threshold = begin(connection, model.stored, threshold)
        contents = _unturned(connection, model, list(turns))
        for start in range(0, len(contents), BLOCK):
            block = images(connection, contents[start : start + BLOCK])
            files = iter([(content, location) for content, (_, location) in block.items()])
            prepare = _preparing(model, turns)
            pictures = {content: made for content, made in ordered_map(threads, prepare, files, 2 * workers) if made}
            for turn in turns:
                new_pairs += _compare(connection, model, network, threshold, turn, pictures)
            compared += len(pictures)
            read += len(block)
            progress(start + len(block), len(contents))
            if stopped.is_set():
                break
    return Turned(compared, read - compared, new_pairs, stopped.is_set())


def _unturned(connection: Connection, model: LoadedModel, turns: Sequence[str]) -> list[int]:
    row = connection.execute(
        "select imgsearch._unturned(m, %s) from imgsearch.model m where m.model_id = %s",
        [list(turns), model.stored.model_id],
    ).fetchone()
    assert row is not None
    return list(row[0])


def _preparing(
    model: LoadedModel, turns: dict[str, Transpose]
) -> Callable[[tuple[int, str]], tuple[int, Prepared | None]]:
    """Read a file and prepare it in every turn; nothing where that fails."""

    def prepare(file: tuple[int, str]) -> tuple[int, Prepared | None]:
        content, location = file
        try:
            picture = open_image(location)
            return content, {turn: model.encoder.prepare(picture.transpose(how)) for turn, how in turns.items()}
        except (OSError, ValueError, SkippedPicture):
            return content, None

    return prepare


def _compare(
    connection: Connection, model: LoadedModel, network: Batches, threshold: float, turn: str,
    pictures: dict[int, Prepared],
) -> int:  # fmt: skip
    if not pictures:
        return 0
    vectors = model.vectors(network.embed([prepared[turn] for prepared in pictures.values()]))
    good = [(content, vector) for content, vector in zip(pictures, vectors, strict=True) if why_not(vector) is None]
    return _scan_turned(connection, model, threshold, turn, good)


@patient
def _scan_turned(
    connection: Connection, model: LoadedModel, threshold: float, turn: str, vectors: list[tuple[int, NDArray[Any]]]
) -> int:
    row = connection.execute(
        "select imgsearch._scan_turned(m, %s, %s, %s, %s) from imgsearch.model m where m.model_id = %s",
        [threshold, turn, [content for content, _ in vectors],
         [literal(vector, model.stored.storage) for _, vector in vectors], model.stored.model_id],
    ).fetchone()  # fmt: skip
    assert row is not None
    return int(row[0])
