"""The truth of a copy detection set: which images are queries and references, and which belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import SourceError
from pgimgsearch.evaluation import disc21
from pgimgsearch.evaluation.context import SEED, Context
from pgimgsearch.evaluation.disc21 import Layout
from pgimgsearch.evaluation.images import StoredImage
from pgimgsearch.evaluation.path_matching import Names
from pgimgsearch.evaluation.ranking import Columns
from pgimgsearch.evaluation.warnings import Warnings
from pgimgsearch.sources.folder import files_source, list_images

BACKGROUND = 20_000  # images to normalise on, drawn at random of what is there: DISC21 has a million

Pairs = dict[str, set[str]]  # query -> its references, by name


@dataclass(frozen=True, slots=True)
class Copies:
    """Distinct images of the three parts, and the places of each query's references."""

    queries: Sequence[StoredImage]
    references: Sequence[StoredImage]
    background: Sequence[StoredImage]
    right: Sequence[Columns]


def gather(context: Context, layout: Layout) -> Copies:
    """Ingest all parts, and map the ground truth to images; names that match nothing are warned of."""
    notes, request = context.notes, context.request
    pairs, lists_all = consistent(disc21.read_truth(layout.truth), notes)
    every_reference, queries = list_images(layout.references), list_images(layout.queries)
    references = every_reference[: request.limit_references]
    background = _background(layout)
    brought: dict[str, StoredImage] = {}
    for root, files in _by_root(layout, references, queries, background).items():
        brought |= context.bringer.bring(files_source(files, root), notes)

    def part(files: Sequence[Path]) -> list[StoredImage]:
        return context.settle([brought[str(file)] for file in files if str(file) in brought])

    there = part(references)
    place = {picture.content_id: number for number, picture in enumerate(there)}
    known = {path: place.get(brought[path].content_id) if path in brought else None for path in map(str, references)}
    matched = _match(pairs, Names(map(str, queries)), Names(map(str, every_reference)), known, notes)
    if not matched:
        there_are = ", ".join(_names(queries[:3])) or "no images"
        raise SourceError(
            f"none of the {len(pairs)} queries of {layout.truth} is there, such as {next(iter(pairs))}",
            hint=f"rows are query_id,reference_id; in {layout.queries} there are {there_are}",
        )
    unnamed = [file for file in queries if str(file) not in matched and str(file) in brought]
    if lists_all:
        notes.add(
            "queries are not in the truth, which names those without a match too, and are left out", _names(unnamed)
        )
    else:
        notes.add("queries are not in the truth and count as without a match", _names(unnamed))
        matched |= {str(file): set() for file in unnamed}
    asked = part([file for file in queries if matched.get(str(file)) is not None])
    right: dict[int, set[int]] = {}
    for path, own in matched.items():
        if path in brought and own is not None:
            right.setdefault(brought[path].content_id, set()).update(own)
    apart = part(background)
    if request.score_norm and request.score_norm > len(apart):
        raise SourceError(f"there are {len(apart)} images to normalise on", hint="take a smaller --score-norm")
    found = Copies(
        asked, there, apart,
        [np.array(sorted(right[picture.content_id]), np.int64) for picture in asked],
    )  # fmt: skip
    _check(context.connection, found, notes)
    return found


def consistent(rows: Sequence[disc21.Pair], notes: Warnings) -> tuple[Pairs, bool]:
    """References by query, and whether the truth names queries without any too; what it says twice or both is noted."""
    pairs: Pairs = {}
    nothing: set[str] = set()
    for query, reference in rows:
        own = pairs.setdefault(query, set())
        if reference is None:
            notes.add("rows of the truth are repeated", [query] if query in nothing else [])
            nothing.add(query)
        else:
            notes.add("rows of the truth are repeated", [f"{query},{reference}"] if reference in own else [])
            own.add(reference)
    notes.add("queries have a match and none in the truth; the match counts", sorted(q for q in nothing if pairs[q]))
    return pairs, bool(nothing)


def check_some(matched: int) -> None:
    """Raise SourceError where no query has a match."""
    if not matched:
        raise SourceError("no query has a match, so there is nothing to find", hint="see the ground truth: --truth")


def _match(
    pairs: Pairs, queries: Names, references: Names, known: Mapping[str, int | None], notes: Warnings
) -> dict[str, set[int] | None]:
    """File of a query -> places of its references; None where one of them is lost, so that nobody can find it.

    ``known`` are the files of references that are searched, and their places, none where they cannot be read.
    """
    found: dict[str, set[int] | None] = {}
    for query, named in pairs.items():
        file = queries.find(query)
        if file is None:
            notes.add("queries of the truth are not there", [query])
            continue
        files = {name: references.find(name) for name in named}
        lost = [name for name, path in files.items() if path is None or (path in known and known[path] is None)]
        notes.add("references of the truth are not there, or cannot be read; their queries are left out", lost)
        places = {place for path in files.values() if path is not None and (place := known.get(path)) is not None}
        if named and not places and not lost:
            notes.add("queries have their reference beyond the limit and count as without a match", [query])
        notes.add("queries are named twice in the truth, in different words", [query] if file in found else [])
        before = found.get(file, set())
        found[file] = None if lost or before is None else places | before
    return found


def _by_root(layout: Layout, *parts: Sequence[Path]) -> dict[Path, list[Path]]:
    """Files by the folder whose collection they belong to: that of the set, or their own where they lie elsewhere."""
    folders = (layout.references, layout.queries, layout.background)
    found: dict[Path, list[Path]] = {}
    for folder, files in zip(folders, parts, strict=True):
        if folder is not None and files:
            found.setdefault(layout.root if folder.is_relative_to(layout.root) else folder, []).extend(files)
    return found


def _background(layout: Layout) -> list[Path]:
    found = list_images(layout.background) if layout.background else []
    chosen = np.random.default_rng(SEED).permutation(len(found))[:BACKGROUND]
    return [found[n] for n in np.sort(chosen).tolist()]


def _check(connection: Connection, found: Copies, notes: Warnings) -> None:
    """Raise SourceError where a figure would mean nothing; note queries that are references, pixel by pixel."""
    if not found.references:
        raise SourceError("none of the references can be read", hint="see imgsearch.ingest_failure for why")
    check_some(sum(1 for own in found.right if len(own)))
    rows = connection.execute(
        "select q.content_id, array_agg(r.content_id) from imgsearch.content q join imgsearch.content r "
        "using (identity) where q.content_id = any(%s) and r.content_id = any(%s) group by 1",
        [[p.content_id for p in found.queries], [p.content_id for p in found.references]],
    ).fetchall()
    equal = {query: set(references) for query, references in rows}
    if len(equal) == len(found.queries):
        raise SourceError(
            "every query is a reference, pixel by pixel: any model would find it", hint="see --queries and --references"
        )
    for query, own in zip(found.queries, found.right, strict=True):
        given = {found.references[n].content_id for n in own.tolist()}
        if query.content_id not in equal:
            continue
        if equal[query.content_id] <= given:
            notes.add("queries equal their reference, pixel by pixel: any model finds them", [query.path])
        else:
            notes.add("queries equal a reference that the truth does not give them", [query.path])


def _names(files: Sequence[Path]) -> list[str]:
    return [file.name for file in files]
