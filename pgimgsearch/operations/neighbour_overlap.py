"""What two models see: the nearest images of each, for images drawn at random."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from psycopg import sql
from psycopg.rows import class_row

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel

NEIGHBOURS = 10

# One statement, so that both models are asked about the same images. What is drawn is looked up again in both tables,
# as a volatile function sees rows that this statement does not; materialized, or models are asked before that.
SEEN = """
with asked as materialized (
    select (select min(image_id) from imgsearch.image where content_id = d) as image_id
    from imgsearch.model m cross join unnest(imgsearch._sample_contents(m, {sample})) d
    join {table} e on e.content_id = d join {other_table} o on o.content_id = d
    where m.name = {one})
select a.image_id, one.ids as one, one.similarities as one_similarities,
       other.ids as other, other.similarities as other_similarities
from asked a cross join lateral ({nearest_one}) one cross join lateral ({nearest_other}) other
where a.image_id is not null order by a.image_id
"""
NEAREST = """
select coalesce(array_agg(s.image_id), '{{}}') as ids, coalesce(array_agg(s.similarity), '{{}}') as similarities
from imgsearch.similar(a.image_id, k => {k}, model => {name}) s
"""


@dataclass(frozen=True, slots=True)
class NeighbourPair:
    """An image, and the images nearest to it by one model and by the other, nearest first."""

    image_id: int
    one: list[int]
    one_similarities: list[float]
    other: list[int]
    other_similarities: list[float]

    @property
    def share(self) -> float:
        """The share of its neighbours that both models name; 1 where there are none."""
        most = max(len(self.one), len(self.other))
        return len({*self.one} & {*self.other}) / most if most else 1.0

    def near(self, model: StoredModel, *, first: bool) -> set[frozenset[int]]:
        """Its pairs that a model takes for near-duplicates."""
        ids, similarities = (self.one, self.one_similarities) if first else (self.other, self.other_similarities)
        least = 2.0 if model.near is None else model.near
        return {frozenset((self.image_id, one)) for one, s in zip(ids, similarities, strict=True) if s >= least}


def neighbour_pairs(connection: Connection, one: StoredModel, other: StoredModel, sample: int) -> list[NeighbourPair]:
    """Ask both models about at most ``sample`` images that both have a vector of."""
    nearest = [
        sql.SQL(NEAREST).format(k=sql.Literal(NEIGHBOURS), name=sql.Literal(model.name)) for model in (one, other)
    ]
    query = sql.SQL(SEEN).format(
        sample=sql.Literal(sample), table=one.table, other_table=other.table, one=sql.Literal(one.name),
        nearest_one=nearest[0], nearest_other=nearest[1],
    )  # fmt: skip
    return connection.cursor(row_factory=class_row(NeighbourPair)).execute(query).fetchall()


def overlap(seen: Sequence[NeighbourPair]) -> float | None:
    """The mean share of neighbours that both models name; None of no images."""
    return fmean(one.share for one in seen) if seen else None


def duplicate_agreement(
    seen: Sequence[NeighbourPair], one: StoredModel, other: StoredModel
) -> tuple[int, int, float | None]:
    """Pairs that each model takes for near-duplicates by its own threshold, and the share of all that both do."""
    first = set().union(*(image.near(one, first=True) for image in seen))
    second = set().union(*(image.near(other, first=False) for image in seen))
    return len(first), len(second), len(first & second) / len(first | second) if first | second else None
