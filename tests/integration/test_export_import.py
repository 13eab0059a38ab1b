"""Embeddings as Parquet: out of one database, into another, and nothing is different there."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from psycopg import sql
from pyarrow import parquet

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import canary_of, get_model
from pgimgsearch.errors import DriftError, SourceError, UsageError
from pgimgsearch.indexing.shadow_table import create_shadow
from pgimgsearch.ingest import run
from pgimgsearch.operations import export_import as transfer
from pgimgsearch.operations.export_import import export, import_files
from pgimgsearch.operations.exported_model import KEY
from pgimgsearch.reporter import Reporter
from tests.conftest import clone
from tests.support.images import photo

Ingest = Callable[..., run.Report]
FILES = 40
IMAGES = """
select l.name, l.root, i.path, i.key, i.group_key, i.caption, i.metadata, i.modified_at, c.sha256,
       c.pixel_hash, c.bytes, c.width, c.height, c.format, e.embedding::text
from imgsearch.image i join imgsearch.content c using (content_id) join imgsearch.collection l using (collection_id)
join {} e using (content_id) order by 1, 3
"""
MODEL = "select to_jsonb(m) - array['model_id', 'embeddings', 'images', 'added_at', 'weights', 'status', 'index_method', 'index_state'] from imgsearch.model m where name = %s"


@pytest.fixture
def other(admin: Connection, server: str, template: str) -> Iterator[str]:
    """The URL of a second fresh database."""
    yield from clone(admin, server, template)


@pytest.fixture
def filled(ingest: Ingest, connection: Connection, tmp_path: Path) -> None:
    """Two collections, copies, captions, and files that no model could use."""
    for number in range(FILES):
        photo(tmp_path / "one" / f"{number:02}.png", seed=number)
    photo(tmp_path / "two" / "a ü.png", seed=99)
    (tmp_path / "two" / "copy.png").write_bytes((tmp_path / "one" / "00.png").read_bytes())
    (tmp_path / "two" / "broken.jpg").write_bytes(b"broken")
    ingest(tmp_path / "one", "palette", "pdq")
    ingest(tmp_path / "two", "palette", "pdq")
    connection.execute(
        "update imgsearch.image set caption = 'a \"red\" door', group_key = 'G', key = path, "
        'metadata = \'{"price": 1.5, "tags": ["a"]}\' where path like \'%5.png\''
    )


def images(connection: Connection, name: str) -> list[Any]:
    query = sql.SQL(IMAGES).format(get_model(connection, name).table)
    return connection.execute(query).fetchall()


@pytest.mark.usefixtures("filled")
def test_an_import_leaves_the_shadow_table_of_another_load_alone(url: str, other: str, tmp_path: Path) -> None:
    target = str(tmp_path / "out.parquet")
    count = export(url, "palette", target, None)
    import_files(other, [target])
    with connect(other) as connection:
        model = get_model(connection, "palette")
        connection.execute("delete from imgsearch.image")
        connection.execute("delete from imgsearch.content")
        create_shadow(connection, model, 1)
    (imported,) = import_files(other, [target], shadow=False)
    with connect(other) as connection:
        assert imported.images == count == len(images(connection, "palette"))
        assert connection.execute("select count(*) from imgsearch.embedding_palette_32__shadow").fetchone() == (0,)


@pytest.mark.usefixtures("filled")
def test_an_export_of_a_version_before_the_first_release(url: str, other: str, tmp_path: Path) -> None:
    """As the message says that refuses its database: external_id in place of key, which did not have to be unique."""
    target = str(tmp_path / "out.parquet")
    count = export(url, "palette", target, None)
    table = parquet.read_table(target)
    described = json.loads(table.schema.metadata[b"pgimgsearch"])
    described["format"] = 1
    described["model"]["index_wanted"] = described["model"].pop("index_spec")
    old = table.rename_columns({"key": "external_id", "pixel_hash": "pixel_sha256"})
    old = old.set_column(old.schema.get_field_index("external_id"), "external_id", pyarrow.array(["same"] * count))
    parquet.write_table(old.replace_schema_metadata({b"pgimgsearch": json.dumps(described).encode()}), target)
    (imported,) = import_files(other, [target])
    with connect(other) as connection:
        found = connection.execute("select key = path, metadata ->> 'external_id' from imgsearch.image").fetchall()
        assert imported.images == count == len(found)
        assert set(found) == {(True, "same")}


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("name", ["palette", "pdq"])
def test_there_and_back(url: str, other: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ROWS_A_GROUP", 16)
    monkeypatch.setattr(transfer, "ROWS_A_CHUNK", 7)
    target = str(tmp_path / "out.parquet")
    with connect(url) as connection:
        wanted, model = images(connection, name), connection.execute(MODEL, [name]).fetchone()
    done: list[int] = []
    assert export(url, name, target, None, Reporter(progress=lambda rows, _: done.append(rows))) == len(wanted)
    assert done[-1] == len(wanted)
    for transform in range(2):  # the second time nothing changes
        (imported,) = import_files(other, [target])
        assert (imported.model, imported.images, imported.skipped) == (name, len(wanted), 0)
        with connect(other) as connection:
            assert images(connection, name) == wanted, transform
            assert connection.execute(MODEL, [name]).fetchone() == model
            found = connection.execute(
                "select count(*) from imgsearch.similar(1, k => 5, model => %s)", [name]
            ).fetchone()
            assert found == (5,)
            ours = canary_of(connection, get_model(connection, name))
    with connect(url) as connection:
        assert ours == canary_of(connection, get_model(connection, name))
    table = parquet.read_table(target)  # and others can read it
    vectors = np.array(table.column("embedding").to_pylist())
    assert vectors.shape[0] == len(wanted)
    assert table.column("sha256").to_pylist()[0] == wanted[0][8]


@pytest.mark.usefixtures("filled")
def test_one_collection(url: str, other: str, tmp_path: Path) -> None:
    target = str(tmp_path / "two.parquet")
    assert export(url, "palette", target, "two") == 2
    import_files(other, [target])
    with connect(other) as connection:
        assert connection.execute("select array_agg(name) from imgsearch.collection").fetchone() == (["two"],)
    with pytest.raises(UsageError, match="no collection three"):
        export(url, "palette", target, "three")


@pytest.mark.usefixtures("filled")
def test_what_is_no_export_or_does_not_fit_is_refused(url: str, other: str, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    export(url, "palette", str(target), None)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(target.read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"cannot read .*cut\.parquet"):
        import_files(other, [str(cut)])
    plain = tmp_path / "plain.parquet"
    parquet.write_table(parquet.read_table(target).replace_schema_metadata({}), plain)
    with pytest.raises(SourceError, match="no export of embeddings"):
        import_files(other, [str(plain)])
    with pytest.raises(SourceError, match="cannot write"):
        export(url, "palette", str(tmp_path), None)
    import_files(other, [str(target)])
    with connect(other) as connection:
        connection.execute("update imgsearch.model set fingerprint = %s", [hashlib.sha256(b"x").hexdigest()])
    with pytest.raises(DriftError, match="other weights"):
        import_files(other, [str(target)])


@pytest.mark.usefixtures("filled")
def test_a_vector_that_must_not_be_stored_is_counted(url: str, other: str, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    rows = export(url, "palette", str(target), None)
    table = parquet.read_table(target)
    vectors = table.column("embedding").to_pylist()
    vectors[3] = [float("nan")] * len(vectors[3])
    import pyarrow

    column = pyarrow.array([np.array(v, np.float16) for v in vectors], table.schema.field("embedding").type)
    parquet.write_table(table.set_column(table.num_columns - 1, table.schema.field("embedding"), column), target)
    (imported,) = import_files(other, [str(target)])
    assert (imported.images, imported.skipped) == (rows - 1, 1)


@pytest.mark.usefixtures("filled")
def test_an_import_changes_no_image_that_is_there(url: str, tmp_path: Path, connection: Connection) -> None:
    """A stranger's export of the same collection, with other bytes, or another path and caption, by the same keys."""
    target = tmp_path / "out.parquet"
    rows = export(url, "palette", str(target), None)
    before = images(connection, "palette")
    table = parquet.read_table(target)
    for column, value in (
        ("path", "/etc/x.png"),
        ("caption", "EVIL"),
        ("root", "/"),
        ("group_key", "E"),
        ("metadata", '{"e": 1}'),
    ):
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(column), pyarrow.array([value] * rows, pyarrow.string()))
    parquet.write_table(table, tmp_path / "same.parquet")
    digests = [hashlib.sha256(bytes([n])).digest() for n in range(rows)]
    place = table.schema.get_field_index("sha256")
    other_bytes = table.set_column(place, table.schema.field("sha256"), pyarrow.array(digests, pyarrow.binary(32)))
    parquet.write_table(other_bytes, tmp_path / "others.parquet")
    found = import_files(url, [str(tmp_path / "same.parquet"), str(tmp_path / "others.parquet")])
    assert [(one.images, one.skipped, one.different) for one in found] == [(rows, 0, 0), (0, 0, rows)]
    assert images(connection, "palette") == before


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "column", ["key", "path", "metadata", "bytes", "width", "sha256", "pixel_hash", "format", "collection"]
)
def test_a_row_with_an_odd_value_is_skipped(url: str, other: str, tmp_path: Path, column: str) -> None:
    target = tmp_path / "out.parquet"
    rows = export(url, "palette", str(target), None)
    table = parquet.read_table(target)
    place, field = table.schema.get_field_index(column), table.schema.field(column)
    odd: list[Any] = table.column(column).to_pylist()
    odd[3] = {"metadata": "[]", "sha256": b"short", "pixel_hash": b"short", "bytes": -1, "width": 0}.get(column)
    kind = pyarrow.binary() if field.type == pyarrow.binary(32) else field.type
    parquet.write_table(table.set_column(place, pyarrow.field(column, kind), pyarrow.array(odd, kind)), target)
    if column == "collection":
        with pytest.raises(SourceError, match="names no collection"):
            import_files(other, [str(target)])
    else:
        (found,) = import_files(other, [str(target)])
        assert (found.images, found.skipped, found.different) == (rows - 1, 1, 0)
    parquet.write_table(table.drop_columns([column]), target)
    with pytest.raises(SourceError, match=f"has no column {column}"):
        import_files(other, [str(target)])


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "described",
    [b"\xff", b"[" * 5000, b"[]", b'{"format": 2}', b'{"format": 2, "model": [], "canary": 1, "reduction": 1}', b"null",
     b'{"format": 1}'],
)  # fmt: skip
def test_a_description_of_no_model_is_refused(url: str, other: str, tmp_path: Path, described: bytes) -> None:
    target = tmp_path / "out.parquet"
    export(url, "palette", str(target), None)
    parquet.write_table(parquet.read_table(target).replace_schema_metadata({KEY: described}), target)
    with pytest.raises(SourceError, match=r"no export of embeddings|does not describe its model"):
        import_files(other, [str(target)])


def test_by_commands(cli: Callable[..., Any], ingest: Ingest, tmp_path: Path) -> None:
    photo(tmp_path / "one" / "a.png", seed=1)
    ingest(tmp_path / "one", "palette")
    done = cli("export", str(tmp_path / "x.parquet"), "--model", "palette")
    assert done.returncode == 0, done.stderr
    done = cli("import", str(tmp_path / "x.parquet"))
    assert done.returncode == 0, done.stderr
