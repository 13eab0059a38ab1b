"""Captions, metadata and groups from beside the images."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgimgsearch.errors import SourceError
from pgimgsearch.sources.rows import COLUMNS, parse_rows, read_text, split
from pgimgsearch.sources.source import ScannedFile


def refinements(
    caption_from: Path | None, metadata: Path | None, group_by: str | None
) -> Callable[[Iterator[ScannedFile]], Iterator[ScannedFile]]:
    """What adds captions, metadata and groups to scanned files, in the order in which one may need the other."""
    captions = read_sidecar(caption_from) if caption_from else None
    attributes = read_sidecar(metadata) if metadata else None

    def refine(files: Iterator[ScannedFile]) -> Iterator[ScannedFile]:
        if captions is not None:
            files = with_captions(files, captions)
        if attributes is not None:
            files = with_metadata(files, attributes)
        return with_groups(files, group_by) if group_by else files

    return refine


def read_sidecar(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows about images by their path, relative to the folder that is ingested."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in parse_rows(read_text(path), str(path)):
        named = {COLUMNS.get(key, key): value for key, value in row.items()}
        if not named.get("path") or len(named) < 2:
            raise SourceError(
                f"{path} has a row without a path or without anything else", hint="it needs a path column"
            )
        rows.setdefault(str(named.pop("path")), []).append(named)
    return rows


def with_captions(files: Iterable[ScannedFile], captions: Mapping[str, list[dict[str, Any]]]) -> Iterator[ScannedFile]:
    """Captions of a sidecar; several of one image are joined by new lines."""
    for file in files:
        texts = [str(row["caption"]) for row in captions.get(file.path, []) if row.get("caption")]
        yield replace(file, caption="\n".join(dict.fromkeys(texts))) if texts else file


def with_metadata(files: Iterable[ScannedFile], rows: Mapping[str, list[dict[str, Any]]]) -> Iterator[ScannedFile]:
    """Metadata and groups of a sidecar; the last row of a path counts."""
    for file in files:
        found = rows.get(file.path)
        if not found:
            yield file
            continue
        own, rest = split(found[-1])
        known = {key: value for key, value in own.items() if value is not None and key != "caption"}
        yield replace(file, metadata=(file.metadata or {}) | rest, **known)


def with_groups(files: Iterable[ScannedFile], group_by: str) -> Iterator[ScannedFile]:
    """Group by ``folder``, by a pattern whose first group is searched for in the path, or by a metadata key."""
    found = pattern(group_by) if "(" in group_by else None
    for file in files:
        if group_by == "folder":
            key: object = str(Path(file.path).parent)
        elif found:
            match = found.search(file.path)
            key = match.group(1) if match else None
        else:
            key = (file.metadata or {}).get(group_by)
        yield replace(file, group_key=str(key)) if key not in (None, "") else file


def pattern(text: str) -> re.Pattern[str]:
    """A pattern over paths with a group in it; raises SourceError for any other."""
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise SourceError(f"{text} is no pattern: {error}", hint=r"for example '(\d+)_\d+\.jpg'") from error
    if compiled.groups == 0:
        raise SourceError(f"the pattern {text} has no group", hint=r"for example '(\d+)_\d+\.jpg'")
    return compiled
