"""Query: what does imgsearch.similar() cost over the same query written by hand, and for how many clients at once?"""

import numpy as np
from psycopg import sql

from benchmarks.clients import throughputs
from benchmarks.harness import fresh_database, report, sized, times_ms
from pgimgsearch.database.memory import machine_memory
from pgimgsearch.database.models import get_model
from pgimgsearch.indexing.build import BuildOptions, build_index
from tests.support.builders import add_images, add_model, add_vectors, clustered

ROWS, DIM, QUERIES, ROUNDS = sized(100_000), 768, 400, 5

BY_HAND = """
select i.image_id, 1 - (e.embedding <=> q.embedding) as similarity, c.name, i.path, i.key, i.group_key,
       i.caption, i.metadata
from {table} e join imgsearch.image i using (content_id) join imgsearch.collection c using (collection_id),
     (select embedding from {table} where content_id = (select content_id from imgsearch.image where image_id = %s)) q
where i.image_id <> %s
order by e.embedding <=> (
    select embedding from {table} where content_id = (select content_id from imgsearch.image where image_id = %s))
limit 10
"""


def main() -> dict[str, object]:
    """Interleave both in rounds; the hand-written query runs at the same ef_search."""
    with fresh_database() as (url, connection):
        add_images(connection, ROWS)
        model = add_model(connection, "bench", DIM)
        add_vectors(connection, model.table_name, clustered(ROWS, DIM))
        build_index(connection, model, BuildOptions(machine_memory() // 4))
        model = get_model(connection, "bench")
        connection.execute(sql.SQL("set hnsw.ef_search = {}").format(sql.Literal(model.ef_search)))
        ids = np.random.default_rng(3).integers(1, ROWS, QUERIES).tolist()
        by_hand = sql.SQL(BY_HAND).format(table=model.table)  # type: ignore[arg-type]

        def hand(turn: int) -> object:
            image = ids[turn % QUERIES]
            return connection.execute(by_hand, [image, image, image]).fetchall()

        def ours(turn: int) -> object:
            return connection.execute("select * from imgsearch.similar(%s)", [ids[turn % QUERIES]]).fetchall()

        rounds = [(times_ms(hand, QUERIES), times_ms(ours, QUERIES)) for _ in range(ROUNDS)]
        found = [
            {row[0] for row in connection.execute("select * from imgsearch.similar(%s)", [i]).fetchall()}
            for i in ids[:100]
        ]
        true = [
            {row[0] for row in connection.execute("select * from imgsearch.similar(%s, exact => true)", [i]).fetchall()}
            for i in ids[:100]
        ]
        rates = throughputs(url, ROWS)
    best_hand, best_ours = (min(float(np.median(one[way])) for one in rounds) for way in (0, 1))
    slow_hand, slow_ours = (float(np.median([np.percentile(one[way], 99) for one in rounds])) for way in (0, 1))
    recall = float(np.mean([len(a & b) / len(b) for a, b in zip(found, true, strict=True)]))
    return report(
        "Query: the time of imgsearch.similar() over the same query by hand",
        [
            {
                "by hand, ms": best_hand,
                "similar(), ms": best_ours,
                "by hand p99, ms": slow_hand,
                "similar() p99, ms": slow_ours,
                "ratio at p99": slow_ours / slow_hand,
                "rows": ROWS,
                "dim": DIM,
                "ef_search": model.ef_search,
                "recall@10": recall,
                **rates,
            }
        ],
        best_ours / best_hand,
        "at most 1.25, and 1.5 at p99",
    )


if __name__ == "__main__":
    main()
