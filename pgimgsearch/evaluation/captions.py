"""Caption files as they come: COCO, Karpathy's splits, Flickr, and CSV or JSONL with a column of captions."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgimgsearch.errors import SourceError
from pgimgsearch.evaluation.warnings import Warnings
from pgimgsearch.sources.rows import json_row, read_text

PICTURE = ("path", "url", "image", "image_name", "file_name", "filename")
TEXT = ("caption", "captions", "comment", "text", "sentence", "title")
COMMON = (
    "captions.csv", "captions.txt", "captions.json", "captions.jsonl", "results.csv", "results*.token", "*.token.txt",
    "dataset*.json", "annotations/captions_*.json",
)  # fmt: skip
TOKEN = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<text>.*)")


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption of an image, which the file calls ``name``."""

    name: str
    text: str
    split: str | None = None


def find(folder: Path) -> Path | None:
    """The caption file of a folder, if it has one; raises SourceError where it has several."""
    found = sorted({path for pattern in COMMON for path in folder.glob(pattern)})
    if len(found) > 1:
        raise SourceError(
            f"{folder} has several caption files: {', '.join(str(path.relative_to(folder)) for path in found)}",
            hint="name one: --captions FILE",
        )
    return found[0] if found else None


def read(path: Path, notes: Warnings, split: str | None = None) -> list[Caption]:
    """All captions of a file, or those of a split; rows without a text are noted. Raises SourceError without any."""
    rows = list(_read(path))
    notes.add(
        "rows of the captions have no image or no text", (row.name for row in rows if not row.name or not row.text)
    )
    found = [row for row in rows if row.name and row.text]
    if split is not None:
        splits = sorted({caption.split for caption in found if caption.split})
        found = [caption for caption in found if caption.split == split]
        if not found:
            raise SourceError(
                f"{path} has no captions of split {split}", hint=f"it has: {', '.join(splits) or 'no splits'}"
            )
    if not found:
        raise SourceError(
            f"{path} holds no captions that can be read",
            hint="COCO or Karpathy JSON, a Flickr token file, or CSV with the columns path and caption",
        )
    return found


def _read(path: Path) -> Iterator[Caption]:
    text = read_text(path).lstrip()
    if text.startswith("["):
        return _rows(_array(text, path), path)
    if text.startswith("{"):
        try:
            whole = json.loads(text)
        except ValueError:
            lines = enumerate(text.split("\n"), 1)
            return _rows((json_row(line, str(path), number) for number, line in lines if line.strip()), path)
        return _whole(whole, path) if "images" in whole else _rows([whole], path)
    first = text.partition("\n")[0]
    if TOKEN.fullmatch(first.rstrip("\r")):
        return _tokens(text)
    separator = "|" if "|" in first else ","
    return _rows(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator), path)


def _tokens(text: str) -> Iterator[Caption]:
    for line in text.splitlines():
        if found := TOKEN.fullmatch(line):
            yield Caption(found["name"], found["text"].strip())


def _whole(whole: dict[str, Any], path: Path) -> Iterator[Caption]:
    """COCO has the captions beside the images, Karpathy in them."""
    try:
        if "annotations" in whole:
            names = {image["id"]: image["file_name"] for image in whole["images"]}
            for annotation in whole["annotations"]:
                number = annotation["image_id"]
                yield Caption(names.get(number, f"image_id {number}"), annotation["caption"].strip())
            return
        for image in whole["images"]:
            name = str(Path(image.get("filepath", ""), image["filename"]))
            for sentence in image["sentences"]:
                yield Caption(name, sentence["raw"].strip(), image.get("split"))
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path} is neither COCO's captions nor Karpathy's: {error!r}", hint="give a file of captions"
        ) from error


def _rows(rows: Iterable[Mapping[Any, Any]], path: Path) -> Iterator[Caption]:
    for number, row in enumerate(rows, 1):
        named = {str(key).strip(): value for key, value in row.items() if key is not None}
        if row.get(None):  # commas in the last column that nobody quoted
            last = next(reversed(named))
            named[last] = ",".join([named[last], *row[None]])
        if not named.keys() & set(PICTURE) or not named.keys() & set(TEXT):
            raise SourceError(
                f"{path}, row {number} has no column of images or none of captions: {', '.join(named)}",
                hint=f"columns of images: {', '.join(PICTURE)}; of captions: {', '.join(TEXT)}",
            )
        texts = _first(named, TEXT)
        for text in texts if isinstance(texts, list) else [texts]:
            yield Caption(str(_first(named, PICTURE)).strip(), str(text).strip(), _plain(named.get("split")))


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name)), "")


def _plain(value: Any) -> str | None:
    return None if value is None else str(value).strip()


def _array(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{path}: {error}", hint="write an array of JSON objects") from error
    if not all(isinstance(row, dict) for row in found):
        raise SourceError(f"{path} is no array of JSON objects", hint="write one object a caption")
    return list(found)
