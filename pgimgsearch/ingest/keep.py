"""What a fill writes: vectors of stored contents, and why there are none. Images are left as they are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from pgimgsearch.database.connection import Connection, vector_schema
from pgimgsearch.database.models import StoredModel
from pgimgsearch.embeddings.binary_copy import encode_rows
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.stopwatch import Stopwatch
from pgimgsearch.ingest.write import again_on_deadlock
from pgimgsearch.models.encoder import Encoder
from pgimgsearch.sources.source import ScannedFile

SOURCE = "models fill"  # of a run that reads what is stored already

ADD_EMBEDDINGS = """
insert into {} (content_id, embedding)
select f.content_id, f.embedding from filled f
cross join lateral (select from imgsearch.content c where c.content_id = f.content_id for key share) c
order by f.content_id on conflict (content_id) do nothing
"""
# A skip is said of the bytes; a file that failed may be back tomorrow as it was, so nothing keeps it from being tried.
EXPLAIN = """
insert into imgsearch.ingest_failure as f
    (collection_id, path, model_id, kind, error_class, message, bytes, modified_at)
select i.collection_id, i.path, %(model)s, n.kind, n.error_class, n.message,
       case n.kind when 'skipped' then c.bytes end, case n.kind when 'skipped' then i.modified_at end
from unnest(%(contents)s::bigint[], %(kinds)s::text[], %(classes)s::text[], %(messages)s::text[])
    as n (content_id, kind, error_class, message)
join imgsearch.content c using (content_id)
cross join lateral (select * from imgsearch.image i where i.content_id = n.content_id for key share) i
order by i.collection_id, i.path
on conflict (collection_id, path, model_id) do update set
    kind = excluded.kind, error_class = excluded.error_class, message = excluded.message, bytes = excluded.bytes,
    modified_at = excluded.modified_at, attempts = f.attempts + 1, last_at = now()
"""
SETTLE = """
delete from imgsearch.ingest_failure f using imgsearch.image i
where i.content_id = any(%s) and f.collection_id = i.collection_id and f.path = i.path and f.model_id = %s
"""


@dataclass(slots=True)
class Lacking:
    """A content without a vector, and the files that show it: ``paths`` below ``roots``."""

    content_id: int
    sha256: bytes
    bytes: int
    pixels: int
    paths: list[str]
    roots: list[str | None]
    item: Item = field(init=False)

    def __post_init__(self) -> None:
        self.item = Item(ScannedFile(self.paths[0], self.paths[0]), frozenset([0]))


class Keeper:
    """Writes vectors, and why there are none, over a connection of its own."""

    def __init__(self, connection: Connection, model: StoredModel) -> None:
        self.connection, self.model = connection, model
        kind = "bit" if model.storage == "bit" else f"{vector_schema(connection)}.{model.storage}"
        connection.execute(
            sql.SQL("create temporary table filled (content_id int8, embedding {}({})) on commit delete rows").format(
                sql.SQL(kind), sql.Literal(model.dim)
            )
        )

    @again_on_deadlock
    def write(self, chunk: Sequence[Lacking]) -> None:
        """A chunk, all of it or nothing; contents that were removed meanwhile are left out."""
        good = [one for one in chunk if one.item.vectors]
        with self.connection.transaction():
            if good:
                contents = np.array([one.content_id for one in good], np.int64)
                block = encode_rows(contents, np.stack([one.item.vectors[0] for one in good]), self.model.dim)
                with self.connection.cursor().copy("copy filled from stdin (format binary)") as copy:
                    copy.write(block)
                self.connection.execute(sql.SQL(ADD_EMBEDDINGS).format(self.model.table))
                self.connection.execute(SETTLE, [contents.tolist(), self.model.model_id])
            troubled = [_trouble(one) for one in chunk if not one.item.vectors]
            if troubled:
                numbers, kinds, classes, messages = (list(column) for column in zip(*troubled, strict=True))
                self.connection.execute(
                    EXPLAIN,
                    {"model": self.model.model_id, "contents": numbers, "kinds": kinds, "classes": classes,
                     "messages": messages},
                )  # fmt: skip

    def record(self, encoder: Encoder, counts: Counts, watch: Stopwatch, seconds: float, status: str) -> None:
        """Put what was done into imgsearch.ingest_run, where ``stats`` and ``models compare`` look."""
        if not counts.done():
            return
        placement = {"device": encoder.device, "dtype": encoder.dtype, "runtime": encoder.runtime}
        stages = {name: asdict(stage) for name, stage in watch.stages.items()}
        self.connection.execute(
            "insert into imgsearch.ingest_run (source, models, placement, started_at, ended_at, status, counts, "
            "timings) values (%s, %s, %s, now() - make_interval(secs => %s), now(), %s, %s, %s)",
            [SOURCE, [self.model.name], Jsonb({self.model.name: placement}), seconds, status, Jsonb(counts.as_dict()),
             Jsonb(stages)],
        )  # fmt: skip


def _trouble(one: Lacking) -> tuple[int, str, str, str]:
    """(content_id, kind, class, message) of a content that has no vector."""
    if one.item.failure is not None:
        kind, (error_class, message) = "failed", one.item.failure
    else:
        kind, error_class, message = "skipped", "SkippedPicture", one.item.reasons[0]
    return one.content_id, kind, error_class, message.replace("\0", "\\0")
