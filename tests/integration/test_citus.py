"""The layout for Citus, which is not here: its functions are stand-ins that note what they are asked for."""

from pathlib import Path

from benchmarks.harness import add_images, add_model, add_vectors, clustered
from pgimgsearch.database.connection import Connection

LAYOUT = Path(__file__).parents[2] / "examples" / "citus" / "layout.sql"
STAND_INS = """
create table pg_dist_partition (logicalrelid regclass, partkey text);
create view citus_tables as select logicalrelid as table_name,
    case when partkey is null then 'reference' else 'distributed' end as citus_table_type from pg_dist_partition;
create function create_reference_table(name text) returns void language sql as $$
    insert into pg_dist_partition values (name::regclass, null) $$;
create function create_distributed_table(name text, spread_by text) returns void language sql as $$
    insert into pg_dist_partition select attrelid, attname from pg_attribute
    where attrelid = name::regclass and attname = spread_by $$;
create function run_command_on_workers(command text) returns text language sql as $$ select command $$;
"""


def test_every_table_is_laid_out_once_and_indexed_when_it_is_filled(connection: Connection) -> None:
    connection.execute(STAND_INS)
    model = add_model(connection, "one", 32)
    connection.execute("select imgsearch.add_model('hash', 256, 'pdq', 'x', 'auto', 'bit')")
    laid_out = "select logicalrelid::text, partkey from pg_dist_partition order by partkey nulls first, 1"
    expected = [("imgsearch.collection", None), ("imgsearch.content", None), ("imgsearch.image", None),
                ("imgsearch.embedding_hash_256", "content_id"), ("imgsearch.embedding_one_32", "content_id")]  # fmt: skip
    layout = LAYOUT.read_text()
    for _ in range(2):
        connection.execute(layout)  # type: ignore[call-overload]
        assert connection.execute(laid_out).fetchall() == expected
    assert connection.execute("select count(*) from imgsearch.model where index_method <> 'none'").fetchone() == (0,)
    vectors = clustered(500, 32)
    add_images(connection, 500)
    add_vectors(connection, model.table_name, vectors)
    connection.execute(layout)  # type: ignore[call-overload]
    connection.execute(layout)  # type: ignore[call-overload]
    assert connection.execute(laid_out).fetchall() == expected
    with connection.transaction():
        found = connection.execute("select image_id from imgsearch.similar(7, model => 'one')").fetchall()
        used = connection.execute("select pg_stat_get_xact_numscans('imgsearch.embedding_one_32_hnsw'::regclass)")
        assert used.fetchone() == (1,)
    true = (-(vectors @ vectors[6])).argsort()[1:11] + 1
    assert len({row[0] for row in found} & set(true.tolist())) >= 9
