"""Mirrored and rotated copies: every image is embedded again under each transform, and compared with all others."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL.Image import Transpose

from pgimgsearch.concurrency import ordered_map, stop_signals
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.retry import retry_on_deadlock
from pgimgsearch.duplicates.calibration_data import image_locations
from pgimgsearch.duplicates.pairs import begin_scan, exclusive_scan
from pgimgsearch.embeddings.binary_copy import literal
from pgimgsearch.embeddings.loaded_model import LoadedModel, rejection_reason
from pgimgsearch.models.runtime.batches import Batches
from pgimgsearch.reporter import Reporter
from pgimgsearch.sources.open_image import open_image

BLOCK = 64  # images whose copies are compared at once

MIRRORED = {"mirrored": Transpose.FLIP_LEFT_RIGHT}
ROTATED = {"rotated 90": Transpose.ROTATE_90, "rotated 180": Transpose.ROTATE_180, "rotated 270": Transpose.ROTATE_270}
BOTH = {
    "mirrored, rotated 90": Transpose.TRANSPOSE, "mirrored, rotated 180": Transpose.FLIP_TOP_BOTTOM,
    "mirrored, rotated 270": Transpose.TRANSVERSE,
}  # fmt: skip

Prepared = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TransformedScan:
    """Images that were compared under transforms, those that could not be read, and new pairs."""

    compared: int
    unreadable: int
    new_pairs: int
    interrupted: bool


def transforms_of(mirror: bool, rotate: bool) -> dict[str, Transpose]:
    """The transforms of an image; with both kinds also one after the other."""
    return (MIRRORED if mirror else {}) | (ROTATED if rotate else {}) | (BOTH if mirror and rotate else {})


def find_transformed(
    url: str, model: LoadedModel, threshold: float, transforms: dict[str, Transpose], workers: int, reporter: Reporter
) -> TransformedScan:
    """Compare what was compared upright and not yet under these transforms, after ``find``. Commits what is finished.

    It goes down to the threshold to which pairs are remembered, so that no later run has to ask again. What cannot be
    read now is counted, and tried again the next time.
    """
    network = Batches(model.encoder, model.batch_size)
    compared = new_pairs = read = 0
    with (
        connect(url) as connection,
        exclusive_scan(connection, model.stored),
        stop_signals() as stopped,
        ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads,
    ):
        threshold = begin_scan(connection, model.stored, threshold)
        contents = _not_yet_transformed(connection, model, list(transforms))
        for start in range(0, len(contents), BLOCK):
            block = image_locations(connection, contents[start : start + BLOCK])
            files = iter([(content, location) for content, (_, location) in block.items()])
            prepare = _preparing(model, transforms)
            pictures = {content: made for content, made in ordered_map(threads, prepare, files, 2 * workers) if made}
            for transform in transforms:
                new_pairs += _compare(connection, model, network, threshold, transform, pictures)
            compared += len(pictures)
            read += len(block)
            reporter.progress(start + len(block), len(contents))
            if stopped.is_set():
                break
    return TransformedScan(compared, read - compared, new_pairs, stopped.is_set())


def _not_yet_transformed(connection: Connection, model: LoadedModel, transforms: Sequence[str]) -> list[int]:
    row = connection.execute(
        "select imgsearch._not_yet_transformed(m, %s) from imgsearch.model m where m.model_id = %s",
        [list(transforms), model.stored.model_id],
    ).fetchone()
    assert row is not None
    return list(row[0])


def _preparing(
    model: LoadedModel, transforms: dict[str, Transpose]
) -> Callable[[tuple[int, str]], tuple[int, Prepared | None]]:
    """Read a file and prepare it under every transform; None where that fails."""

    def prepare(file: tuple[int, str]) -> tuple[int, Prepared | None]:
        content, location = file
        try:
            picture = open_image(location)
            return content, {
                transform: model.encoder.prepare(picture.transpose(how)) for transform, how in transforms.items()
            }
        except Exception:  # moved, broken or never an image: stores and decoders raise anything
            return content, None

    return prepare


def _compare(
    connection: Connection, model: LoadedModel, network: Batches, threshold: float, transform: str,
    pictures: dict[int, Prepared],
) -> int:  # fmt: skip
    if not pictures:
        return 0
    vectors = model.vectors(network.embed([prepared[transform] for prepared in pictures.values()]))
    good = [
        (content, vector) for content, vector in zip(pictures, vectors, strict=True) if rejection_reason(vector) is None
    ]
    return _scan_transformed(connection, model, threshold, transform, good)


@retry_on_deadlock
def _scan_transformed(
    connection: Connection,
    model: LoadedModel,
    threshold: float,
    transform: str,
    vectors: list[tuple[int, NDArray[Any]]],
) -> int:
    row = connection.execute(
        "select imgsearch._scan_transformed(m, %s, %s, %s, %s) from imgsearch.model m where m.model_id = %s",
        [threshold, transform, [content for content, _ in vectors],
         [literal(vector, model.stored.storage) for _, vector in vectors], model.stored.model_id],
    ).fetchone()  # fmt: skip
    assert row is not None
    return int(row[0])
