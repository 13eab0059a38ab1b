"""Images whose files are gone: renamed ones are recognised, and others deleted once it is sure that they are gone."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from pgimgsearch.errors import DatabaseError, SourceError
from pgimgsearch.ingest.load_target import prefix
from pgimgsearch.ingest.plan import Planner
from pgimgsearch.reporter import Reporter
from pgimgsearch.sources.locations import is_url
from pgimgsearch.sources.source import Source

MOST_NAMED = 10
ROWS_A_FETCH = 10_000
# What a folder's listing says nothing of: URLs, absolute paths that are not its own, and keys other than the path.
IN_SCOPE = sql.SQL(
    "t.collection_id = {collection} and ({scope}::text is null or (starts_with(t.path, {scope}) and t.key = t.path "
    "and ({scope} ~ {absolute} or t.path !~ {absolute})))"
)
ABSOLUTE = "^([a-z][a-z0-9+.-]*:/)?/"
UNSEEN = sql.SQL("not exists (select from seen s where s.key = t.key)")
# New names of contents whose old names are gone, one for one: the image is the same.
RENAMED = sql.SQL("""
create temporary table renamed on commit drop as
select g.image_id as old_id, f.image_id as new_id, f.key, f.path, f.modified_at, f.group_key, f.caption, f.metadata
from (select t.*, row_number() over (partition by t.content_id order by t.key) as place from imgsearch.image t
      where {in_scope} and {unseen}) g
join (select t.*, row_number() over (partition by t.content_id order by t.key) as place from imgsearch.image t
      where {in_scope} and not ({unseen})
      and t.added_at >= (select r.started_at from imgsearch.ingest_run r where r.run_id = {run})) f
using (content_id, place)
""")
RENAME = """
update imgsearch.image i set key = r.key, path = r.path, modified_at = r.modified_at, updated_at = now(),
    group_key = coalesce(r.group_key, i.group_key), caption = coalesce(r.caption, i.caption),
    metadata = i.metadata || (  -- what the file itself says, the image has already, or another was given for it
        select coalesce(jsonb_object_agg(n.key, n.value), '{}') from jsonb_each(r.metadata) n
        where not exists (
            select from imgsearch.content c where c.content_id = i.content_id and c.about -> n.key = n.value))
from renamed r where i.image_id = r.old_id
"""


@dataclass(frozen=True, slots=True)
class Removal:
    """How many of a source's images are gone, of how many, the first of them by path, and how many have a new name."""

    gone: int
    total: int
    first: tuple[str, ...]
    renamed: int = 0

    def told(self, source: Source) -> str:
        """For people."""
        why = "whose files are gone" if source.scope is not None else f"which {source.label} does not name"
        more = ", ..." if self.gone > len(self.first) else ""
        return f"{self.gone} of {self.total} images, {why}: {', '.join(self.first)}{more}"


def prune(planner: Planner, source: Source, root: str, run_id: int, *, anyway: bool, reporter: Reporter) -> list[int]:
    """Rename and delete images of a source that the run did not see. Returns the contents of those deleted.

    Raises SourceError where so many are gone that the source is rather away, unless ``anyway``; and DatabaseError where
    the connection was lost, and with it the list of files seen.
    """
    scope = _scope(planner, source, root)
    with planner.connection.transaction():
        _check_seen(planner)
        spare_excluded(planner, source, root)
        planner.connection.execute(RENAMED.format(in_scope=scope, unseen=UNSEEN, run=sql.Literal(run_id)))
        planner.connection.execute("delete from imgsearch.image i using renamed r where i.image_id = r.new_id")
        planner.connection.execute(RENAME)
        found = count_removal(planner, source, root)
        if not anyway:
            check_removal(planner, source, root, found)
        if found.gone:
            reporter.say(f"deleting {found.told(source)}")
        for table in ("ingest_failure", "image"):
            gone = planner.connection.execute(
                sql.SQL("delete from imgsearch.{} t where {} and {} returning {}").format(
                    sql.Identifier(table), scope, UNSEEN, sql.SQL("content_id" if table == "image" else "null")
                )
            )
        return [row[0] for row in gone.fetchall()]


def count_removal(planner: Planner, source: Source, root: str, new: Counter[bytes] | None = None) -> Removal:
    """What would be deleted; changes nothing. ``new``: sha256 of files under new names, each of which renames one."""
    scope = _scope(planner, source, root)
    total = planner.connection.execute(
        sql.SQL("select count(*) from imgsearch.image t where {}").format(scope)
    ).fetchone()
    assert total is not None
    left, gone, first, renamed = Counter(new), 0, [], 0
    for path, digest, _ in unseen_images(planner, source, root):
        if left[digest]:
            left[digest] -= 1
            renamed += 1
            continue
        gone += 1
        if gone <= MOST_NAMED:
            first.append(path)
    return Removal(gone, total[0], tuple(first), renamed)


def spare_excluded(planner: Planner, source: Source, root: str) -> None:
    """Count what patterns exclude as seen: it was not looked for, so it is not known to be gone."""
    if source.leaves_out is None:
        return
    top = prefix(source, root)
    kept = [path for path, _, _ in unseen_images(planner, source, root) if source.leaves_out(path.removeprefix(top))]
    planner.connection.execute("insert into seen select unnest(%s::text[]) on conflict do nothing", [kept])


def unseen_images(planner: Planner, source: Source, root: str) -> Iterator[tuple[str, bytes, int]]:
    """Path, sha256 and bytes of images that were not seen, by path; within a transaction."""
    with planner.connection.cursor("unseen") as cursor:
        cursor.itersize = ROWS_A_FETCH
        cursor.execute(
            sql.SQL(
                "select t.path, c.sha256, c.bytes from imgsearch.image t join imgsearch.content c using (content_id) "
                "where {} and {} order by t.path"
            ).format(_scope(planner, source, root), UNSEEN)
        )
        yield from cursor


def _scope(planner: Planner, source: Source, root: str) -> sql.Composed:
    return IN_SCOPE.format(
        collection=sql.Literal(planner.collection_id), absolute=sql.Literal(ABSOLUTE),
        scope=sql.Literal(None if source.scope is None else prefix(source, root)),
    )  # fmt: skip


def _check_seen(planner: Planner) -> None:
    """Raise DatabaseError unless the server remembers each file that was seen; a pooler may have lost some."""
    lost = planner.session.losses
    kept = None if lost else planner.connection.execute("select count(*) from seen").fetchone()
    if kept != (planner.seen,):
        raise DatabaseError(
            "nothing was pruned: the connection was lost, and with it the list of scanned files",
            hint="all files are ingested; run the same command again to prune",
        )


def check_removal(planner: Planner, source: Source, root: str, found: Removal) -> None:
    """Raise SourceError for a source that names nothing, a fifth less than before, or a folder that is empty now."""
    if not found.gone:
        return
    hint = "see them: --prune --dry-run; if they are gone for good: --prune-all"
    if not planner.seen:
        raise SourceError(f"nothing was pruned: {source.label} names no image, and held {found.total}", hint=hint)
    if (empty := _emptied(planner, source, root)) is not None:
        raise SourceError(f"nothing was pruned: {empty} is empty, and held images; is it mounted? It would delete "
                          f"{found.told(source)}", hint=hint)  # fmt: skip
    if found.gone * 5 > found.total:
        raise SourceError(f"nothing was pruned: it would delete more than a fifth, {found.told(source)}", hint=hint)


def _emptied(planner: Planner, source: Source, root: str) -> str | None:
    """A folder that is there and holds nothing, where images were."""
    if source.scope is None or is_url(source.scope):
        return None
    rows = planner.connection.execute(
        sql.SQL("select distinct regexp_replace(t.path, '/?[^/]*$', '') from imgsearch.image t where {} and {}").format(
            _scope(planner, source, root), UNSEEN
        )
    ).fetchall()
    for folder in _existing({os.path.join(root, row[0]) for row in rows}):  # noqa: PTH118
        if not _holds_anything(folder):
            return folder
    return None


def _existing(folders: Iterable[str]) -> set[str]:
    """The folders, or of those that are gone the deepest above them that is there."""
    found = set()
    for folder in map(Path, folders):
        found.add(str(next((one for one in (folder, *folder.parents) if os.path.isdir(one)), folder)))  # noqa: PTH112  (a name may be too long)
    return found


def _holds_anything(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:  # gone, or not to be read
        return True
