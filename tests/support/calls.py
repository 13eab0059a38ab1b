"""A database with something for every function to answer, and a call of every public function."""

from collections.abc import Mapping
from pathlib import Path

import psycopg

from pgimgsearch.database.connection import Connection
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.ingest import run
from pgimgsearch.reporter import SILENT
from pgimgsearch.sources.folder import folder_source
from tests.support.images import photo

MODELS = ("palette", "pdq")

# By signature, so that overloads have one each. {image} is an image, {other} another one.
CALLS: Mapping[str, str] = {
    "add_model": "imgsearch.add_model('shirts', 512, 'transformers', 'me/shirts', 'pooled')",
    "cache_text": "imgsearch.cache_text('teal', array_fill(0.1::real, array[32])::public.vector, 'palette')",
    "classify": "imgsearch.classify({image}, array['red', 'blue'], 'palette')",
    "clusters": "imgsearch.clusters('palette', filter => '{{\"shop\": 1}}')",
    "connect_embedder": "imgsearch.connect_embedder('127.0.0.1', 1, 'secret')",
    "coverage": "imgsearch.coverage(exact => true)",
    "create_embeddings": "imgsearch.create_embeddings(1)",
    "drop_model": "imgsearch.drop_model('shirts')",
    "duplicate_groups": "imgsearch.duplicate_groups(0.9, 'palette', also => '{{pdq}}', agree => 'any', k => 100)",
    "duplicates": "imgsearch.duplicates(0.9, 'palette', also => '{{pdq}}', k => 100)",
    "duplicates_of": "imgsearch.duplicates_of({image}, 0.9, 'palette')",
    "embedder_status": "imgsearch.embedder_status()",
    "embedding": "imgsearch.embedding({image}, 'palette')",
    "embedding_bits": "imgsearch.embedding_bits({image}, 'pdq')",
    "grant_access": "imgsearch.grant_access('{role}', 'writer')",
    "image_vector": "imgsearch.image_vector('\\x00', 'palette')",
    "judge_duplicates": "imgsearch.judge_duplicates({image}, {other}, 'rejected')",
    "own_collections": "imgsearch.own_collections()",
    "partition_embeddings": "imgsearch.partition_embeddings('shirts', 2)",
    "predict_label": "imgsearch.predict_label({image}, 'shop', model => 'palette')",
    "recall": "imgsearch.recall('palette', 3, 3)",
    "rollback_alias": "imgsearch.rollback_alias('other')",
    "search_hybrid": "imgsearch.search_hybrid('red', 3, filter => '{{\"shop\": 1}}')",
    "search_mixed": "imgsearch.search_mixed({image}, 'red', k => 3, collapse => true)",
    "search_text": "imgsearch.search_text('red', 3, among => array[{image}, {other}])",
    "set_alias": "imgsearch.set_alias('other', 'palette')",
    "set_index": "imgsearch.set_index('shirts', m => 24)",
    "similar": "imgsearch.similar({image}, 3, collapse => true)",
    "similar_fused": "imgsearch.similar_fused({image}, '{{palette,pdq}}', '{{1,0}}', 3)",
    "similar_groups bigint": "imgsearch.similar_groups({image}::bigint, 3, 'palette', 'mean')",
    "similar_groups text": "imgsearch.similar_groups('group 1', 3, 'palette')",
    "similar_to": "imgsearch.similar_to(array_fill(0.1::real, array[32])::public.vector, 3, 'palette')",
    "similar_to_bits": "imgsearch.similar_to_bits(repeat('01', 128)::bit(256), 3, 'pdq')",
    "similar_to_image": "imgsearch.similar_to_image('\\x00', k => 3, model => 'palette')",
    "switch_alias": "imgsearch.switch_alias('other', 'pdq', allow_missing => null)",
    "text_key": "imgsearch.text_key('red')",
    "text_vector": "imgsearch.text_vector('red', 'palette')",
}  # fmt: skip
ORDER = ("add_model", "set_index", "partition_embeddings", "set_alias", "switch_alias", "rollback_alias")
LAST = ("drop_model",)  # what the first ones made


def in_order() -> list[str]:
    """The names of all calls, in an order in which each finds what it needs."""
    return [*ORDER, *(name for name in CALLS if name not in {*ORDER, *LAST}), *LAST]


def public_functions(connection: Connection) -> set[str]:
    """The public functions of the database, named as in CALLS."""
    rows = connection.execute(
        "select p.proname, (p.proargtypes::regtype[])[0]::text, count(*) over (partition by p.proname) "
        "from pg_proc p where p.pronamespace = 'imgsearch'::regnamespace and p.proname !~ '^_'"
    ).fetchall()
    return {name if number == 1 else f"{name} {kind}" for name, kind, number in rows}


def fill(url: str, folder: Path, collection: str, seeds: range) -> None:
    """Ingest drawn images, each twice, with groups and metadata, and a broken file; as whoever the URL names."""
    place = folder / collection
    place.mkdir()
    for seed in seeds:
        photo(place / f"{seed}.png", seed)
        photo(place / f"{seed}-copy.jpg", seed, quality=90)
    (place / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    source = folder_source(place)
    models = open_models(url, ModelRequest(list(MODELS)), [source], reporter=SILENT)
    run.ingest(url, source, models, run.Options(collection=collection, workers=1))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "update imgsearch.image set group_key = 'group ' || mod(length(key), 3), caption = 'red ' || key, "
            "metadata = '{\"shop\": 1}' where collection_id = (select collection_id from imgsearch.collection where name = %s)",
            [collection],
        )
