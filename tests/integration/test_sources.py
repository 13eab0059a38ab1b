"""Images from tars, Parquet and object stores: the same rows as from a folder, and what breaks is named."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from pgimgsearch.database.connection import Connection
from pgimgsearch.errors import SourceError, UsageError
from pgimgsearch.ingest import run
from pgimgsearch.sources import shards
from pgimgsearch.sources.locations import stored_location
from pgimgsearch.sources.object_store import read_object
from pgimgsearch.sources.parse import parse_sources
from pgimgsearch.sources.read import TooManyBytes, read_bytes
from tests.support.images import photo

Ingest = Callable[..., run.Report]
CONTENTS = (
    "select array_agg(encode(c.sha256, 'hex') order by c.sha256), count(e.*) from imgsearch.image i "
    "join imgsearch.content c using (content_id) left join imgsearch.embedding_palette_32 e using (content_id)"
)
FILES = 12


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, bytes]:
    """Name -> bytes."""
    made = {}
    for number in range(FILES):
        path = tmp_path / "photos" / f"{number:04}.png"
        photo(path, seed=number)
        made[path.name] = path.read_bytes()
    return made


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """An object store in this process."""
    monkeypatch.setattr("pgimgsearch.sources.locations.STORES", frozenset({"memory"}))
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_700_000_000
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def counts(report: run.Report) -> dict[str, int]:
    found = {name: number for name, number in report.counts["palette"].items() if number}
    assert found.pop("scanned") == sum(found.values())
    return found


def stored(connection: Connection, query: str = CONTENTS) -> Any:
    return connection.execute(query).fetchone()  # type: ignore[call-overload]


def from_folder(ingest: Ingest, connection: Connection, folder: Path) -> Any:
    """What a folder leaves in the database; the database is empty again afterwards."""
    ingest(folder)
    rows = stored(connection)
    connection.execute("truncate imgsearch.content, imgsearch.collection cascade")
    return rows


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_is_what_its_folder_is(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes], ending: str
) -> None:
    wanted = from_folder(ingest, connection, tmp_path / "photos")
    halves = [dict(list(pictures.items())[:7]), dict(list(pictures.items())[7:])]
    paths = [str(tmp_path / "shards" / f"{number}.{ending}") for number in range(2)]
    Path(paths[0]).parent.mkdir()
    for path, half in zip(paths, halves, strict=True):
        Path(path).write_bytes(tar_of(half, "w:gz" if ending == "tar.gz" else "w"))
    (source,) = parse_sources(paths, None)
    report = ingest(source)
    assert counts(report) == {"embedded": FILES}
    assert report.collection == "shards"
    assert stored(connection) == wanted
    assert counts(ingest(source)) == {"unchanged": FILES}
    assert stored(connection, "select min(path), max(path) from imgsearch.image") == (
        f"0.{ending}/0000.png", f"1.{ending}/0011.png",
    )  # fmt: skip


def test_a_sample_is_its_picture_caption_and_metadata(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    one, two, three = list(pictures.values())[:3]
    about = {"caption": "overridden", "group": "G1", "url": "https://example.com/a.png", "width": 64}
    path = tmp_path / "wds.tar"
    path.write_bytes(
        tar_of({
            "a/001.json": json.dumps(about).encode(), "a/001.png": one, "a/001.txt": b"a red door\n",
            "a/002.cls": b"7", "a/002.png": two,
            "a/003.json": b"{broken", "a/003.png": three,
        })
    )  # fmt: skip
    assert counts(ingest(parse_sources([str(path)], None)[0])) == {"embedded": 2, "failed": 1}
    rows = connection.execute("select path, caption, group_key, metadata from imgsearch.image order by path").fetchall()
    assert rows == [
        ("wds.tar/a/001.png", "a red door", "G1", {"url": "https://example.com/a.png", "width": 64}),
        ("wds.tar/a/002.png", None, None, {"class": "7"}),
    ]
    failure = stored(connection, "select path, message from imgsearch.ingest_failure")
    assert failure[0] == "wds.tar/a/003.png"
    assert "its metadata cannot be stored" in failure[1]


def test_members_of_one_name_are_images_of_their_own(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    """However the name is written; and none has the caption of another."""
    four = list(pictures.values())[:4]
    names = ["b.png", "./b.png", "x/../b.png", "/b.png"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [*zip(names, four, strict=True), ("b.txt", b"the first"), ("00000001-b.png", four[0])]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "wds.tar").write_bytes(buffer.getvalue())
    table = pa.table({"path": names, "image": four})
    parquet.write_table(table, tmp_path / "t.parquet")
    for shard, count in (("wds.tar", 5), ("t.parquet", 4)):
        (source,) = parse_sources([str(tmp_path / shard)], None)
        assert sum(counts(ingest(source)).values()) == count
        rows = connection.execute(
            "select i.caption, encode(c.sha256, 'hex') from imgsearch.image i join imgsearch.content c using (content_id) "
            "where starts_with(i.path, %s)", [shard],
        ).fetchall()  # fmt: skip
        assert len(rows) == count
        assert {digest for _, digest in rows} == {hashlib.sha256(data).hexdigest() for data in four}
        captioned = [digest for caption, digest in rows if caption]
        assert captioned == ([hashlib.sha256(four[0]).hexdigest()] if shard == "wds.tar" else [])


def test_a_text_of_an_image_that_is_not_in_the_tar_is_of_no_other(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    one, two = list(pictures.values())[:2]
    (tmp_path / "wds.tar").write_bytes(tar_of({
        "shot.001.png": one, "shot.002.png": two, "shot.003.txt": b"the third", "shot.json": b'{"of": "all"}',
        "alone.png": one, "alone.caption.txt": b"its own",
    }))  # fmt: skip
    (source,) = parse_sources([str(tmp_path / "wds.tar")], None)
    ingest(source)
    rows = connection.execute("select path, caption, metadata from imgsearch.image order by path").fetchall()
    assert rows == [
        ("wds.tar/alone.png", "its own", {}),
        ("wds.tar/shot.001.png", None, {"of": "all"}), ("wds.tar/shot.002.png", None, {"of": "all"}),
    ]  # fmt: skip
    assert stored(connection, "select path, message from imgsearch.ingest_failure") == (
        "wds.tar/shot.003.txt", "a text of an image shot.003 that the tar does not hold",
    )  # fmt: skip


def test_a_value_of_parquet_that_python_has_no_form_for_fails_its_row(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    values = list(pictures.values())
    far = [0, 1 << 62, *[0] * (FILES - 2)]
    odd = {
        "time": pa.array(far, pa.int64()).cast(pa.timestamp("us")), "span": pa.array(far, pa.int64()).cast(pa.duration("s")),
        "day": pa.array([0, 1 << 30, *[0] * (FILES - 2)], pa.int32()).cast(pa.date32()),
        "text": pa.Array.from_buffers(pa.string(), FILES, pa.array([b"a", b"\xff", *[b"b"] * (FILES - 2)]).buffers()),
    }  # fmt: skip
    for name, column in odd.items():
        table = pa.table({"image": values, "path": list(pictures), name: column})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        (source,) = parse_sources([str(tmp_path / f"{name}.parquet")], None)
        found = counts(ingest(source))
        assert sum(found.values()) == FILES
        assert found["failed"] == 1
        message = stored(connection, f"select message from imgsearch.ingest_failure where starts_with(path, '{name}')")
        assert f"its {name} cannot be read" in message[0]
    nanoseconds = pa.array([1_577_934_245_123_456_789] * FILES).cast(pa.timestamp("ns", "UTC"))
    parquet.write_table(pa.table({"image": values, "when": nanoseconds}), tmp_path / "ns.parquet")
    (source,) = parse_sources([str(tmp_path / "ns.parquet")], None)
    assert "failed" not in counts(ingest(source))
    said = "select distinct metadata ->> 'when' from imgsearch.image where starts_with(path, 'ns')"
    assert stored(connection, said) == ("2020-01-02T03:04:05.123456Z",)


def test_no_text_of_a_tar_goes_to_another_image_or_is_lost(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    """Names twice, several texts of a sample, a name written in two ways, and a text long before its image."""
    one, two, three, four = list(pictures.values())[:4]
    members = [
        ("a.png", one), ("a.txt", b"first"), ("a.png", two), ("a.txt", b"second"), ("./b.txt", b"of b"), ("b.png", three),
        ("cat.png", one), ("cat.de.txt", b"Katze"), ("cat.en.txt", b"cat"), ("late.txt", b"late"),
        *((f"x{number}.png", four + b"\0" * 20_000_000) for number in range(4)), ("late.png", two),
    ]  # fmt: skip
    with tarfile.open(tmp_path / "wds.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (source,) = parse_sources([str(tmp_path / "wds.tar")], None)
    ingest(source)
    captions = dict(connection.execute("select path, caption from imgsearch.image where path !~ '/x'").fetchall())
    second = next(path for path in captions if path.endswith("-a.png"))
    assert captions == {"wds.tar/a.png": "first", second: None, "wds.tar/b.png": "of b", "wds.tar/cat.png": None}
    failed = {row[0] for row in connection.execute("select path from imgsearch.ingest_failure").fetchall()}
    assert failed == {f"wds.tar/{name}" for name in ("a.txt", "cat.de.txt", "cat.en.txt", "late.png")}


@pytest.mark.parametrize("layout", ["bytes", "hub"])
def test_parquet_of_images(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes], layout: str
) -> None:
    wanted = from_folder(ingest, connection, tmp_path / "photos")
    values: list[Any] = list(pictures.values())
    if layout == "hub":
        table = pa.table({
            "image": [{"bytes": data, "path": name} for name, data in pictures.items()], "caption": list(pictures),
            "label": list(range(FILES)),
        })  # fmt: skip
    else:
        table = pa.table({"jpg": [*values, None], "key": [*pictures, "missing.png"]})
    path = tmp_path / "images.parquet"
    parquet.write_table(table, path, row_group_size=5)
    (source,) = parse_sources([str(path)], None)
    assert counts(ingest(source)) == {"embedded": FILES} | ({"failed": 1} if layout == "bytes" else {})
    assert stored(connection) == wanted
    assert counts(ingest(source)) == {"unchanged": FILES} | ({"failed": 1} if layout == "bytes" else {})
    if layout == "hub":
        row = stored(connection, "select caption, metadata from imgsearch.image where path = 'images.parquet/0003.png'")
        assert row == ("0003.png", {"label": 3})


def test_a_corrupt_shard_is_named_and_the_next_one_is_read(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    names = list(pictures)
    whole = tar_of({name: pictures[name] for name in names[:6]})
    cut = len(tar_of({name: pictures[name] for name in names[:3]})) // 2
    (tmp_path / "1.tar").write_bytes(whole[:cut])
    (tmp_path / "2.tar").write_bytes(b"no tar at all")
    (tmp_path / "3.parquet").write_bytes(b"PAR1 no parquet")
    (tmp_path / "4.tar").write_bytes(tar_of({name: pictures[name] for name in names[6:]}))
    parquet.write_table(pa.table({"words": ["none"]}), tmp_path / "5.parquet")
    paths = [str(tmp_path / name) for name in ("1.tar", "2.tar", "3.parquet", "4.tar", "5.parquet")]
    (source,) = parse_sources(paths, None)
    found = counts(ingest(source))
    assert found["failed"] == 4
    assert 7 <= found["embedded"] < FILES
    failures = dict(connection.execute("select path, message from imgsearch.ingest_failure").fetchall())
    assert set(failures) == {"1.tar", "2.tar", "3.parquet", "5.parquet"}
    assert "words" in failures["5.parquet"]
    assert counts(ingest(source))["failed"] == 4  # told again, as it may be mended at any time
    (tmp_path / "1.tar").write_bytes(whole)
    ingest(source)
    assert stored(connection)[1] == FILES
    left = connection.execute("select array_agg(path order by path) from imgsearch.ingest_failure").fetchone()
    assert left == (["2.tar", "3.parquet", "5.parquet"],)


@pytest.mark.parametrize("kind", ["header", "cut between members", "noise"])
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_that_breaks_between_its_members_is_named(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes], kind: str, ending: str
) -> None:
    names = list(pictures)
    before = len(tar_of({name: pictures[name] for name in names[:5]}).rstrip(b"\0"))
    before += -before % 512
    whole = bytearray(tar_of(pictures))
    if kind == "cut between members":
        del whole[before:]
    else:
        whole[before : before + (512 if kind == "header" else 3000)] = b"x" * (512 if kind == "header" else 3000)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(bytes(whole)) if ending == "tar.gz" else bytes(whole))
    assert counts(ingest(parse_sources([str(path)], None)[0])) == {"embedded": 5, "failed": 1}
    assert "breaks off" in stored(connection, "select message from imgsearch.ingest_failure")[0]


def test_a_shard_below_a_collection_is_part_of_it(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    photo(tmp_path / "all" / "first.png", seed=77)
    ingest(tmp_path / "all")
    for folder, name in zip("ab", pictures, strict=False):
        (tmp_path / "all" / folder).mkdir()
        (tmp_path / "all" / folder / "1.tar").write_bytes(tar_of({"x.png": pictures[name]}))
        assert ingest(parse_sources([str(tmp_path / "all" / folder / "1.tar")], None)[0]).collection == "all"
    paths = connection.execute("select array_agg(path order by path) from imgsearch.image").fetchone()
    assert paths == (["a/1.tar/x.png", "b/1.tar/x.png", "first.png"],)
    root = stored(connection, "select root from imgsearch.collection")[0]
    assert read_bytes(stored_location("b/1.tar/x.png", root), 1 << 20) == pictures["0001.png"]


def test_what_names_not_everything_cannot_prune(ingest: Ingest, tmp_path: Path, pictures: dict[str, bytes]) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(pictures))
    for place in (str(tmp_path / "a.tar"), "https://example.com/a.jpg"):
        with pytest.raises(UsageError, match="would delete what"):
            ingest(parse_sources([place], None)[0], prune=True)


def test_what_postgres_could_not_store_fails_one_picture(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    one, *others = pictures.values()
    said = {
        "1.txt": b"a\0b", "2.json": b'{"a": NaN}', "3.json": b'{"a": "\\u0000"}', "4.json": b'{"a": "\\ud800"}',
        "5.json": b'{"a": 1e999}', "6.txt": b"\xff", "7.json": b"[1]",
    }  # fmt: skip
    members = {"0.png": one}
    for (name, text), data in zip(said.items(), others, strict=False):
        members |= {name: text, name.partition(".")[0] + ".png": data}
    members |= {"caf\udce9.png": others[-1], "../../out.png": others[-2], "._0.png": b"hidden"}
    (tmp_path / "bad.tar").write_bytes(tar_of(members))
    assert counts(ingest(parse_sources([str(tmp_path / "bad.tar")], None)[0])) == {
        "embedded": 4,
        "failed": len(said) - 1,
    }
    kept = connection.execute("select array_agg(path order by path) from imgsearch.image").fetchone()
    assert kept == (["bad.tar/0.png", "bad.tar/2.png", "bad.tar/caf\\xe9.png", "bad.tar/out.png"],)
    table = pa.table({
        "jpg": others[:4], "score": [0.5, float("nan"), 1.0, float("inf")], "mask": [{"bytes": one, "path": "m"}] * 4,
        "path": ["same", "same", "other", "last"],
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "b.parquet")
    report = ingest(parse_sources([str(tmp_path / "b.parquet")], None)[0])
    assert report.counts["palette"]["failed"] == 1
    rows = connection.execute("select path, metadata from imgsearch.image where path ~ 'parquet' order by 1").fetchall()
    assert rows == [
        ("b.parquet/00000001-same", {}), ("b.parquet/other", {"score": 1.0}), ("b.parquet/same", {"score": 0.5}),
    ]  # fmt: skip


def test_a_folder_may_be_called_like_a_tar(ingest: Ingest, tmp_path: Path) -> None:
    photo(tmp_path / "set" / "extracted.tar" / "a.png", seed=5)
    assert counts(ingest(tmp_path / "set")) == {"embedded": 1}


def test_a_user_in_a_url_is_refused() -> None:
    with pytest.raises(SourceError, match="with a user name in it"):
        parse_sources(["https://me:secret@example.com/a.tar"], None)


def test_an_object_store_is_what_a_folder_is(
    ingest: Ingest, connection: Connection, tmp_path: Path, pictures: dict[str, bytes], memory: MemoryFileSystem
) -> None:
    wanted = from_folder(ingest, connection, tmp_path / "photos")
    for number, (name, data) in enumerate(pictures.items()):
        memory.pipe(f"/bucket/shop/{number % 3}/{name}", data)
    memory.pipe("/bucket/shop/readme.txt", b"no image")
    memory.pipe("/bucket/other/0000.png", pictures["0000.png"])
    (source,) = parse_sources(["memory://bucket/shop"], None)
    report = ingest(source)
    assert (counts(report), report.collection) == ({"embedded": FILES}, "shop")
    assert report.left_out == ["1 files are not images that can be read: 1 others (1 .txt)"]
    assert stored(connection) == wanted
    row = stored(
        connection,
        "select l.root, min(i.path) from imgsearch.collection l join imgsearch.image i using (collection_id) group by 1",
    )
    assert row == ("memory:///bucket/shop", "0/0000.png")
    assert counts(ingest(source)) == {"unchanged": FILES}
    memory.pipe("/bucket/shop/0/0000.png", pictures["0001.png"])
    memory.rm("/bucket/shop/1/0001.png")
    report = ingest(source, prune=True)
    assert (counts(report), report.pruned) == ({"unchanged": FILES - 2, "reused": 1}, 1)


def test_a_store_that_fails_is_tried_again(
    ingest: Ingest, pictures: dict[str, bytes], memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in pictures.items():
        memory.pipe(f"/bucket/{name}", data)
    memory.pipe("/shards/a.tar", tar_of(pictures))
    whole, tries = MemoryFileSystem._open, dict.fromkeys(["0003.png", "0005.png", "a.tar"], 0)

    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 20_000:
                raise ConnectionResetError("the store hung up")
            return super().read(size)

        def readinto(self, buffer: Any) -> int:
            data = self.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)

    def flaky(self: MemoryFileSystem, path: str, *args: Any, **options: Any) -> Any:
        name = path.rpartition("/")[2]
        if name in tries:
            tries[name] += 1
            if name == "0003.png" and tries[name] < 3:
                raise ConnectionResetError("the store hung up")
            if name == "0005.png":
                raise TimeoutError("the store stalls")
            if name == "a.tar" and tries[name] == 1:
                return Breaking(tar_of(pictures))
        return whole(self, path, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", flaky)
    monkeypatch.setattr(read_object.retry, "sleep", lambda _: None)
    monkeypatch.setattr(shards, "SECONDS_BETWEEN", 0)
    assert counts(ingest(parse_sources(["memory://bucket"], None)[0])) == {"embedded": FILES - 1, "failed": 1}
    assert tries["0003.png"] == 3
    assert counts(ingest(parse_sources(["memory://shards/a.tar"], None)[0])) == {"embedded": 1, "reused": FILES - 1}
    assert tries["a.tar"] == 2


def test_one_member_can_be_read_again(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    """As ``models fill`` does, which goes by stored paths."""
    (tmp_path / "a.tar").write_bytes(tar_of({f"in/{name}": data for name, data in pictures.items()}))
    for name, data in pictures.items():
        assert read_bytes(f"{tmp_path}/a.tar/in/{name}", 1 << 20) == data
    with pytest.raises(TooManyBytes):
        read_bytes(f"{tmp_path}/a.tar/in/0000.png", 10)
    with pytest.raises(FileNotFoundError, match=r"holds no other\.png"):
        read_bytes(f"{tmp_path}/a.tar/other.png", 10)


@pytest.mark.parametrize(
    ("place", "message", "hint"),
    [
        ("memory://nothing/here", "there is nothing at", "check the URL"),
        ("nonsense://bucket", "nonsense://", "s3://"),
        ("/nonexistent/a.tar", "there is no shard", "exists"),
    ],
)
@pytest.mark.usefixtures("memory")
def test_what_cannot_be_read_is_said_at_once(place: str, message: str, hint: str) -> None:
    with pytest.raises(SourceError, match=message) as raised:
        parse_sources([place], None)
    assert hint in str(raised.value.hint)
