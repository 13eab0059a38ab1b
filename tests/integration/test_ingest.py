"""Ingest: every file is counted, nothing is done twice, nothing is lost."""

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.reconnect import Session
from pgimgsearch.embeddings.binary_copy import as_column, encode_rows
from pgimgsearch.embeddings.loaded_model import rejection_reason
from pgimgsearch.errors import DatabaseError, ModelError, SourceError, UsageError
from pgimgsearch.ingest import run
from pgimgsearch.ingest.dry_run import dry_run
from pgimgsearch.ingest.item import Counts, Item
from pgimgsearch.ingest.plan import Planner
from pgimgsearch.ingest.write import drop_orphans
from pgimgsearch.models.encoder import unit
from pgimgsearch.sources import sidecar
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.limits import ImageLimits
from pgimgsearch.sources.listing import list_source
from pgimgsearch.sources.selection import Selection
from pgimgsearch.sources.source import ScannedFile
from pgimgsearch.sources.storable import MOST_CAPTION, MOST_KEY, MOST_METADATA
from tests.support.images import photo

Ingest = Callable[..., run.Report]
ZERO = {"embedded": 0, "reused": 0, "unchanged": 0, "skipped": 0, "failed": 0}


def counts(report: run.Report, model: str = "palette") -> dict[str, int]:
    found = dict(report.counts[model])
    assert found.pop("scanned") == sum(found.values())
    return found


def one(connection: Connection, query: str, *parameters: Any) -> Any:
    row = connection.execute(query, parameters).fetchone()  # type: ignore[call-overload]
    return row if row is None or len(row) > 1 else row[0]


def test_a_second_run_does_nothing(ingest: Ingest, photos: Path, connection: Connection) -> None:
    assert counts(ingest(photos, "palette", "pdq")) == ZERO | {"embedded": 12}
    again = ingest(photos, "palette", "pdq")
    assert counts(again) == counts(again, "pdq") == ZERO | {"unchanged": 12}
    assert "read" not in again.stages
    assert one(
        connection,
        "select (select count(*) from imgsearch.image), (select count(*) from imgsearch.embedding_pdq_256)",
    ) == (12, 12)
    assert one(connection, "select array_agg(status order by run_id) from imgsearch.ingest_run") == [
        "complete",
        "complete",
    ]
    assert one(
        connection,
        "select (select status from imgsearch.model where name = 'pdq'), (select index_method from imgsearch.model where name = 'pdq')",
    ) == ("ready", "hnsw")


def test_a_second_model_needs_no_second_row(ingest: Ingest, photos: Path, connection: Connection) -> None:
    ingest(photos, "palette")
    both = ingest(photos, "palette", "pdq")
    assert counts(both) == ZERO | {"unchanged": 12}
    assert counts(both, "pdq") == ZERO | {"embedded": 12}
    assert one(connection, "select count(*) from imgsearch.content") == 12


def test_equal_bytes_are_embedded_once(ingest: Ingest, photos: Path, connection: Connection) -> None:
    for number in range(40):  # twins of one file, more than a batch of lookups
        (photos / f"twin-{number}.png").write_bytes((photos / "a" / "00.png").read_bytes())
    assert counts(ingest(photos)) == ZERO | {"embedded": 12, "reused": 40}
    photo(photos / "new.png", seed=99)
    (photos / "late-twin.png").write_bytes((photos / "b" / "08.png").read_bytes())
    assert counts(ingest(photos)) == ZERO | {"unchanged": 52, "embedded": 1, "reused": 1}
    assert one(
        connection, "select (select count(*) from imgsearch.image), (select count(*) from imgsearch.content)"
    ) == (54, 13)


def test_broken_twins_fail_alike(ingest: Ingest, photos: Path, connection: Connection) -> None:
    for number in range(5):
        (photos / f"broken-{number}.jpg").write_bytes(b"no image at all")
    assert counts(ingest(photos)) == ZERO | {"embedded": 12, "failed": 5}
    assert (
        one(
            connection,
            "select count(*) from imgsearch.ingest_failure where error_class = 'UnidentifiedImageError'",
        )
        == 5
    )


def test_failures_are_recorded_and_retried_when_asked(ingest: Ingest, photos: Path, connection: Connection) -> None:
    (photos / "empty.png").touch()
    whole = (photos / "a" / "00.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "gone.png").symlink_to("nowhere")
    photo(photos / "huge.png", seed=50, size=(2000, 1000))
    assert counts(ingest(photos, limits=ImageLimits(max_pixels=1_000_000))) == ZERO | {"embedded": 12, "failed": 4}
    failures = connection.execute(
        "select path, error_class, attempts from imgsearch.ingest_failure order by path"
    ).fetchall()
    assert failures == [
        ("cut.png", "OSError", 1),
        ("empty.png", "EmptyFile", 1),
        ("gone.png", "FileNotFoundError", 1),
        ("huge.png", "TooManyPixels", 1),
    ]
    # unchanged failures are left alone; a file that is not there is looked for again
    assert counts(ingest(photos)) == ZERO | {"unchanged": 12, "skipped": 3, "failed": 1}
    assert counts(ingest(photos, retry_failed=True)) == ZERO | {"unchanged": 12, "embedded": 1, "failed": 3}
    assert one(connection, "select array_agg(attempts order by path) from imgsearch.ingest_failure") == [
        2,
        2,
        3,
    ]
    # a file that was mended is tried by itself
    photo(photos / "empty.png", seed=51)
    assert counts(ingest(photos)) == ZERO | {"unchanged": 13, "embedded": 1, "skipped": 1, "failed": 1}
    assert one(connection, "select array_agg(path order by path) from imgsearch.ingest_failure") == [
        "cut.png",
        "gone.png",
    ]


def test_skips_belong_to_one_model(ingest: Ingest, photos: Path, connection: Connection) -> None:
    Image.new("RGB", (300, 300), "red").save(photos / "flat.png")
    report = ingest(photos, "palette", "pdq")
    assert counts(report) == ZERO | {"embedded": 13}
    assert counts(report, "pdq") == ZERO | {"embedded": 12, "skipped": 1}
    assert "hash quality" in one(connection, "select message from imgsearch.ingest_failure")
    assert connection.execute("select model, embedded, skipped, failed, missing from imgsearch.coverage(exact => true) order by 1").fetchall() == [
        ("palette", 13, 0, 0, 0), ("pdq", 12, 1, 0, 0),
    ]  # fmt: skip


def test_a_changed_file_replaces_its_content(ingest: Ingest, photos: Path, connection: Connection) -> None:
    ingest(photos)
    image_id = one(connection, "select image_id from imgsearch.image where path = 'a/00.png'")
    photo(photos / "a" / "00.png", seed=77, size=(50, 60))
    assert counts(ingest(photos)) == ZERO | {"embedded": 1, "unchanged": 11}
    assert one(
        connection,
        "select image_id, width, height from imgsearch.image join imgsearch.content using (content_id) where path = 'a/00.png'",
    ) == (image_id, 50, 60)
    assert one(connection, "select count(*) from imgsearch.content") == 12
    os.utime(photos / "a" / "01.png", (1, 1))
    assert counts(ingest(photos)) == ZERO | {"reused": 1, "unchanged": 11}
    assert counts(ingest(photos)) == ZERO | {"unchanged": 12}


def test_prune_removes_what_is_gone_and_only_below_the_source(
    ingest: Ingest, photos: Path, connection: Connection
) -> None:
    ingest(photos)
    (photos / "a" / "00.png").unlink()
    (photos / "b" / "08.png").unlink()
    assert ingest(photos / "a", prune=True).pruned == 1
    assert one(connection, "select count(*) from imgsearch.image") == 11
    assert ingest(photos, prune=True).pruned == 1
    assert one(
        connection,
        "select (select count(*) from imgsearch.content), (select count(*) from imgsearch.embedding_palette_32)",
    ) == (10, 10)
    with pytest.raises(UsageError, match="--limit"):
        ingest(photos, prune=True, limit=3)
    (photos / "a" / "dangling.png").symlink_to("nowhere")  # is seen, so it blocks nothing
    assert ingest(photos, prune=True).pruned == 0


def test_prune_of_a_folder_leaves_what_a_list_added(
    ingest: Ingest, photos: Path, tmp_path: Path, connection: Connection
) -> None:
    outside = photo(tmp_path / "elsewhere.png", seed=200)
    (photos / "list.txt").write_text(f"{outside}\na/00.png\n")
    named = list_source(str(photos / "list.txt"))
    ingest(photos)
    ingest(named, collection="photos")
    assert ingest(photos, prune=True).pruned == 0
    assert one(connection, "select count(*) from imgsearch.image where path = %s", str(outside)) == 1
    with pytest.raises(SourceError, match="more than a fifth, 11 of 13 images, which list"):
        ingest(named, collection="photos", prune=True)
    assert ingest(named, collection="photos", prune=True, prune_all=True).pruned == 11  # all that it does not name


def test_prune_of_a_folder_leaves_what_has_a_key(ingest: Ingest, photos: Path, connection: Connection) -> None:
    (photos / "list.csv").write_text("path,key,group\na/00.png,sku1,shirts\n")
    ingest(list_source(str(photos / "list.csv")))
    assert ingest(photos, prune=True).pruned == 0
    assert one(connection, "select group_key from imgsearch.image where key = 'sku1'") == "shirts"


def test_an_unreadable_folder_blocks_pruning(
    ingest: Ingest, photos: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(photos)
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match="cannot prune"):
        ingest(photos, prune=True)
    assert one(connection, "select count(*) from imgsearch.image") == 12
    assert counts(ingest(photos)) == ZERO | {"unchanged": 8, "failed": 1}


def test_shifted_names_keep_their_pictures(
    ingest: Ingest, photos: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0..6 become 1..7 and a new 0 arrives, each file a chunk of its own: no content is dropped that is still promised."""
    monkeypatch.setattr(run, "FILES_PER_CHUNK", 1)
    ingest(photos)
    for number in range(6, -1, -1):
        (photos / "a" / f"{number:02}.png").rename(photos / "a" / f"{number + 1:02}.png")
    photo(photos / "a" / "00.png", seed=300)
    assert counts(ingest(photos)) == ZERO | {"embedded": 1, "reused": 7, "unchanged": 4}
    for path, digest in connection.execute(
        "select path, encode(sha256, 'hex') from imgsearch.image join imgsearch.content using (content_id)"
    ):
        assert hashlib.sha256((photos / path).read_bytes()).hexdigest() == digest, path
    assert one(connection, "select count(*) from imgsearch.content") == 12  # that of the old 07 is gone


def test_a_twin_of_a_skipped_file_is_skipped_too(ingest: Ingest, tmp_path: Path, connection: Connection) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (300, 300), "red").save(flat / "a.png")
    assert counts(ingest(flat, "pdq"), "pdq") == ZERO | {"skipped": 1}
    (flat / "b.png").write_bytes((flat / "a.png").read_bytes())
    report = ingest(flat, "palette", "pdq")
    assert counts(report) == ZERO | {"embedded": 1, "reused": 1}
    assert counts(report, "pdq") == ZERO | {"skipped": 2}
    assert one(connection, "select array_agg(path order by path) from imgsearch.ingest_failure") == ["a.png", "b.png"]


def test_a_twin_is_known_though_its_first_is_written_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer commits and forgets an item between the planner's two looks: its twin is not embedded again."""
    first, twin = (Item(ScannedFile(name, name), frozenset([0]), data=b"x", sha256=b"1" * 32) for name in "ab")
    planner = Planner(Session(None), 1, [], Counts([]))  # type: ignore[arg-type]
    monkeypatch.setattr(planner, "_contents", lambda _: {})
    list(planner.deduplicate([first]))

    def written_meanwhile(_: list[bytes]) -> dict[bytes, frozenset[int]]:
        planner.forget(first)
        return {}

    monkeypatch.setattr(planner, "_contents", written_meanwhile)
    assert next(iter(planner.deduplicate([twin]))).twin is first
    assert twin.data == b""


def test_contents_in_use_survive_the_dropping_of_others(
    ingest: Ingest, photos: Path, url: str, connection: Connection
) -> None:
    ingest(photos, "palette")
    connection.execute("delete from imgsearch.image where path <> 'a/00.png'")
    every = [row[0] for row in connection.execute("select content_id from imgsearch.content").fetchall()]
    with connect(url) as opened:
        drop_orphans(Session(opened), every)
    assert one(connection, "select count(*) from imgsearch.content") == 1


def test_a_time_beyond_the_calendar_fails_one_file(ingest: Ingest, photos: Path) -> None:
    try:
        os.utime(photos / "a" / "00.png", (3e11, 3e11))
    except OverflowError:
        pytest.skip("this file system has no such times")
    if (photos / "a" / "00.png").stat().st_mtime < 2.9e11:
        pytest.skip("this file system has no such times")
    assert counts(ingest(photos)) == ZERO | {"embedded": 11, "failed": 1}


def test_a_stop_during_unchanged_files_is_heard(ingest: Ingest, photos: Path, url: str) -> None:
    ingest(photos)

    def interrupting(files: Iterator[ScannedFile]) -> Iterator[ScannedFile]:
        for number, file in enumerate(files):
            if number == 3:  # the handler itself: a signal would reach it when the main thread next runs
                handler = signal.getsignal(signal.SIGINT)
                assert callable(handler)
                handler(signal.SIGINT, None)
            yield file

    report = ingest(photos, refine=interrupting)
    assert report.status == "interrupted"
    assert counts(report)["unchanged"] == 3


def test_subfolders_and_collections(ingest: Ingest, photos: Path, connection: Connection) -> None:
    assert ingest(photos / "a").collection == "a"
    assert ingest(photos).collection == "photos"
    assert ingest(photos / "b").collection == "photos"  # it lies below that root
    assert one(connection, "select array_agg(name order by name) from imgsearch.collection") == [
        "a",
        "photos",
    ]
    assert counts(ingest(photos / "b", collection="a")) == ZERO | {"reused": 4}  # another root of that collection
    assert one(connection, "select min(path) from imgsearch.image where path ~ '^/'") == str(photos / "b" / "08.png")
    assert ingest(photos / "a", collection="a", prune=True).pruned == 0
    (photos / "b" / "08.png").unlink()
    assert ingest(photos / "b", collection="a", prune=True, prune_all=True).pruned == 1
    photo(photos / "b" / "08.png", 8)
    assert counts(ingest(photos, collection="named")) == ZERO | {"reused": 12}


def test_limit_and_preview(ingest: Ingest, photos: Path, url: str, connection: Connection) -> None:
    assert counts(ingest(photos, limit=5)) == ZERO | {"embedded": 5}
    (photos / "dangling.png").symlink_to("nowhere")
    report = dry_run(url, folder_source(photos), ["palette", "dinov3"], run.Options())
    assert counts(report) == ZERO | {"unchanged": 5, "embedded": 7, "failed": 1}
    assert counts(report, "dinov3") == ZERO | {"embedded": 12, "failed": 1}
    assert one(
        connection,
        "select (select count(*) from imgsearch.image), (select count(*) from imgsearch.ingest_failure)",
    ) == (5, 0)


def test_new_captions_reach_unchanged_files(ingest: Ingest, photos: Path, connection: Connection) -> None:
    ingest(photos)
    listed = photos.parent / "about.jsonl"
    listed.write_text('{"path": "a/00.png", "caption": "a red thing", "price": 3, "key": "X1"}')

    def refine(files: Iterator[ScannedFile]) -> Iterator[ScannedFile]:
        about = sidecar.Sidecar(listed)
        return sidecar.with_groups(sidecar.with_metadata(sidecar.with_captions(files, about), about), "folder")

    assert counts(ingest(photos, refine=refine)) == ZERO | {"unchanged": 12}
    assert one(
        connection,
        "select caption, metadata, key, group_key from imgsearch.image where path = 'a/00.png'",
    ) == ("a red thing", {"price": 3, "key": "X1"}, "a/00.png", "a")
    assert (
        one(connection, "select path from imgsearch.image where search @@ plainto_tsquery('simple', 'thing')")
        == "a/00.png"
    )
    assert one(connection, "select count(*) from imgsearch.image where group_key = 'b'") == 4
    ingest(photos)  # without a sidecar, what is stored stays
    assert one(connection, "select caption from imgsearch.image where path = 'a/00.png'") == "a red thing"


@pytest.fixture
def web(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The photos over HTTP on this machine, and the paths asked for; /busy answers 503 twice, then an image."""
    monkeypatch.setenv("PGIMGSEARCH_ALLOW_PRIVATE", "1")
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/busy.png" and asked.count("/busy.png") < 3:
                self.send_error(503)
                return
            self.path = "/a/00.png" if self.path == "/busy.png" else self.path
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(photos))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_urls_from_a_list(ingest: Ingest, photos: Path, web: tuple[str, list[str]], connection: Connection) -> None:
    address, asked = web
    rows = [f"{address}/a/01.png,1", f"{address}/busy.png,2", f"{address}/missing.png,3", "b/08.png,4"]
    (photos / "list.csv").write_text("path,key\n" + "\n".join(rows))
    source = list_source(str(photos / "list.csv"))
    assert counts(ingest(source)) == ZERO | {"embedded": 3, "failed": 1}
    assert asked.count("/busy.png") == 3
    assert asked.count("/missing.png") == 1
    assert one(connection, "select error_class from imgsearch.ingest_failure") == "HTTPError"
    assert connection.execute("select path, key from imgsearch.image order by key").fetchall() == [
        (f"{address}/a/01.png", "1"), (f"{address}/busy.png", "2"), (str(photos / "b/08.png"), "4"),
    ]  # fmt: skip
    asked.clear()
    assert counts(ingest(source)) == ZERO | {"unchanged": 3, "failed": 1}  # it may be back
    assert asked == ["/missing.png"]


def test_another_url_of_a_key_is_embedded(
    ingest: Ingest, photos: Path, web: tuple[str, list[str]], connection: Connection
) -> None:
    address, _ = web
    listed = photos / "list.csv"
    listed.write_text(f"url,key\n{address}/a/01.png,shirt\n{address}/missing.png,shoe\n")
    assert counts(ingest(list_source(str(listed)))) == ZERO | {"embedded": 1, "failed": 1}
    before = one(connection, "select sha256 from imgsearch.content join imgsearch.image using (content_id)")
    listed.write_text(f"url,key\n{address}/a/02.png,shirt\n{address}/a/03.png,shoe\n")
    assert counts(ingest(list_source(str(listed)))) == ZERO | {"embedded": 2}
    rows = connection.execute("select key, path, sha256 from imgsearch.image join imgsearch.content using (content_id) "
                              "order by key").fetchall()  # fmt: skip
    assert [row[:2] for row in rows] == [("shirt", f"{address}/a/02.png"), ("shoe", f"{address}/a/03.png")]
    assert before not in {row[2] for row in rows}
    assert one(connection, "select count(*) from imgsearch.ingest_failure") == 0


def test_a_key_whose_new_url_fails_keeps_its_image(
    ingest: Ingest, photos: Path, web: tuple[str, list[str]], connection: Connection
) -> None:
    address, _ = web
    listed, stored = photos / "list.csv", "select path || ' ' || caption from imgsearch.image"
    listed.write_text(f"url,key,caption\n{address}/a/01.png,shirt,old\n")
    ingest(list_source(str(listed)))
    listed.write_text(f"url,key,caption\n{address}/missing.png,shirt,new\n")
    for _ in range(2):
        assert counts(ingest(list_source(str(listed)))) == ZERO | {"failed": 1}  # it is asked for again
        assert one(connection, stored) == f"{address}/a/01.png old"


def test_the_same_path_twice_in_a_list(ingest: Ingest, photos: Path, connection: Connection) -> None:
    (photos / "list.txt").write_text("a/00.png\na/00.png\na/01.png\n")
    assert counts(ingest(list_source(str(photos / "list.txt")))) == ZERO | {"embedded": 2, "reused": 1}
    assert one(connection, "select count(*) from imgsearch.image") == 2


def test_two_runs_at_once_into_one_collection(ingest: Ingest, photos: Path, url: str) -> None:
    ingest(photos)
    with connect(url) as other:
        other.execute(
            "select pg_advisory_lock(hashtext('pgimgsearch.ingest'), collection_id) from imgsearch.collection"
        )
        with pytest.raises(DatabaseError, match="another ingest into collection photos"):
            ingest(photos)


def test_a_failed_write_counts_nothing(ingest: Ingest, photos: Path, connection: Connection) -> None:
    ingest(photos, limit=1)
    connection.execute("alter table imgsearch.content rename column width to wide")
    with pytest.raises(DatabaseError):
        ingest(photos)
    status, stored = one(connection, "select status, counts from imgsearch.ingest_run order by run_id desc limit 1")
    assert status == "failed"
    assert stored["palette"] == ZERO | {"scanned": 1, "unchanged": 1}
    connection.execute("alter table imgsearch.content rename column wide to width")
    assert counts(ingest(photos)) == ZERO | {"unchanged": 1, "embedded": 11}


@given(
    st.lists(st.lists(st.floats(width=16, allow_nan=True), min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from(["halfvec", "vector"]),
)
def test_stored_vectors_are_finite_units(rows: list[list[float]], storage: str) -> None:
    for vector in as_column(unit(np.array(rows, dtype=np.float32)), storage):
        if rejection_reason(vector) is None:
            assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=2e-3)
        else:
            assert not vector.any() or not np.isfinite(vector).all()


@pytest.mark.parametrize(("storage", "dim"), [("halfvec", 5), ("vector", 5), ("bit", 16)])
def test_copy_blocks_mean_what_postgres_reads(connection: Connection, storage: str, dim: int) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2, (40, dim)) if storage == "bit" else rng.standard_normal((40, dim)).astype(np.float32)
    vectors = as_column(raw.astype(np.uint8) if storage == "bit" else raw, storage)
    connection.execute(f"create temporary table t (ordinal int4, embedding {storage}({dim}))")  # type: ignore[call-overload]
    with connection.cursor().copy("copy t from stdin (format binary)") as copy:
        copy.write(encode_rows(np.arange(40, dtype=np.int32), vectors, dim))
    for ordinal, text in connection.execute("select ordinal, embedding::text from t").fetchall():
        read = [float(c) for c in text] if storage == "bit" else json.loads(text)
        expected = raw[ordinal] if storage == "bit" else vectors[ordinal].astype(np.float64)
        assert np.allclose(read, expected, rtol=1e-3)


def test_disk_full_is_said(ingest: Ingest, photos: Path) -> None:
    from pgimgsearch.database.connection import translate

    error = translate(psycopg.errors.DiskFull("could not extend file: No space left on device"))
    assert (type(error).__name__, error.exit_code) == ("DiskFullError", 7)
    assert "free some space" in str(error.hint)


@pytest.mark.parametrize("indexed", [True, False])
def test_copies_are_refused_at_the_door(
    tmp_path: Path, ingest: Callable[..., Any], connection: Connection, indexed: bool
) -> None:
    """Bytes, pixels and near copies; of what is stored and of what came before in the same run. Counts add up."""
    first, second = tmp_path / "first", tmp_path / "second"
    for number in range(3, 7):
        photo(first / f"{number}.png", seed=number, size=(320, 240))
    ingest(first, "pdq", "palette")
    if not indexed:
        connection.execute("update imgsearch.model set index_method = 'none'")
    original = Image.open(first / "3.png")
    second.mkdir()
    (second / "a bytes.png").write_bytes((first / "3.png").read_bytes())
    original.save(second / "b pixels.bmp")
    original.resize((200, 150)).save(second / "c small.png")
    photo(second / "d new.png", seed=8, size=(320, 240))
    Image.open(second / "d new.png").resize((200, 150)).save(second / "e small new.png")
    (second / "f new again.png").write_bytes((second / "d new.png").read_bytes())
    report = ingest(second, "pdq", "palette", skip_duplicates=True, collection="second")
    expected = {"scanned": 6, "embedded": 1, "reused": 0, "unchanged": 0, "skipped": 5, "failed": 0}
    assert report.counts == {"pdq": expected, "palette": expected}
    why = dict(
        connection.execute(
            "select path, message from imgsearch.ingest_failure where error_class = 'DuplicateImage'"
        ).fetchall()
    )
    assert why["a bytes.png"] == why["b pixels.bmp"] == "identical to 3.png"
    assert why["c small.png"].startswith("near copy of 3.png")
    assert why["e small new.png"].startswith("near copy of d new.png")
    assert why["f new again.png"] == "identical to d new.png"
    assert connection.execute("select path from imgsearch.image join imgsearch.collection using (collection_id) where name = 'second'").fetchall() == [("d new.png",)]  # fmt: skip
    again = ingest(second, "pdq", "palette", skip_duplicates=True, collection="second")
    assert again.counts["pdq"]["skipped"] == 5
    assert again.counts["pdq"]["unchanged"] == 1
    welcome = ingest(second, "pdq", "palette", retry_failed=True, collection="second")
    assert welcome.counts["pdq"]["skipped"] == 0
    assert connection.execute("select count(*) from imgsearch.ingest_failure").fetchone() == (0,)


def test_the_door_never_costs_a_picture_that_nothing_else_shows(
    tmp_path: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    """A stored content that no image shows refuses nobody; and who is refused may still be wanted in another's place."""
    folder = tmp_path / "photos"
    photo(folder / "base.png", seed=3, size=(320, 240))
    photo(folder / "z.png", seed=4, size=(320, 240))
    ingest(folder, "pdq")
    small = Image.open(folder / "base.png").resize((200, 150))
    small.save(folder / "a.png")
    small.save(folder / "z.png")
    connection.execute("update imgsearch.model set index_method = 'none'")
    report = ingest(folder, "pdq", skip_duplicates=True)
    assert report.counts["pdq"] == {"scanned": 3, "embedded": 1, "reused": 0, "unchanged": 1, "skipped": 1, "failed": 0}
    paths = "select i.path, c.width from imgsearch.image i join imgsearch.content c using (content_id) order by 1"
    assert connection.execute(paths).fetchall() == [("base.png", 320), ("z.png", 200)]
    connection.execute("delete from imgsearch.image")
    (folder / "base.png").unlink()  # nobody shows it any more, so its small copy is welcome
    ingest(folder, "pdq", skip_duplicates=True, retry_failed=True)
    assert ("a.png", 200) in connection.execute(paths).fetchall()
    with pytest.raises(UsageError, match="--prune with --skip-duplicates"):
        ingest(folder, "pdq", skip_duplicates=True, prune=True)


def test_a_share_that_goes_away_ends_the_run(ingest: Ingest, tmp_path: Path, connection: Connection) -> None:
    """And its files are no broken pictures when it is back."""
    share, away = tmp_path / "share", tmp_path / "away"
    for number in range(700):  # of which 500 are looked up, and then read, before the next
        photo(share / f"{number:03}.png", seed=number)

    def unplugged(files: Iterator[ScannedFile]) -> Iterator[ScannedFile]:
        for number, file in enumerate(list(files)):
            if number == 600:
                share.rename(away)
            yield file

    with pytest.raises(SourceError, match="is away: the last 20 files could not be read"):
        ingest(share, refine=unplugged)
    assert one(connection, "select count(*) from imgsearch.image") >= 400, "what was read before is stored"
    away.rename(share)
    report = counts(ingest(share))
    assert report["failed"] == report["skipped"] == 0
    assert report["embedded"] + report["unchanged"] == 700


@pytest.mark.parametrize(("data", "told"), [
    (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"), (b"\xff\x0a\x00", "JPEG XL"), (b" <!DOCTYPE html>", "an HTML page"),
    (b"\xd7\xcd\xc6\x9a", "WMF"), (b"hello", "not an image"),
])  # fmt: skip
def test_what_is_not_read_is_named(
    ingest: Ingest, tmp_path: Path, connection: Connection, data: bytes, told: str
) -> None:
    photo(tmp_path / "p" / "good.png")
    (tmp_path / "p" / "other.jpg").write_bytes(data)
    assert counts(ingest(tmp_path / "p")) == ZERO | {"embedded": 1, "failed": 1}
    assert told in str(one(connection, "select message from imgsearch.ingest_failure"))
    assert counts(ingest(tmp_path / "p")) == ZERO | {"unchanged": 1, "skipped": 1}  # its bytes are what they are


def test_renamed_files_are_the_same_images(ingest: Ingest, photos: Path, connection: Connection, url: str) -> None:
    """With their numbers and captions, also where two show the same bytes; and the rest is pruned as before."""
    (photos / "a" / "twin.png").write_bytes((photos / "a" / "00.png").read_bytes())
    ingest(photos)
    connection.execute("update imgsearch.image set caption = 'of ' || path")
    before = dict(connection.execute("select caption, image_id from imgsearch.image").fetchall())
    (photos / "a" / "00.png").rename(photos / "new name.png")
    (photos / "a" / "twin.png").rename(photos / "a" / "zwilling.png")
    (photos / "b" / "08.png").unlink()
    told = dry_run(url, folder_source(photos), ["palette"], run.Options(prune=True)).left_out
    assert told == [
        "--prune would delete 1 of 13 images, whose files are gone: b/08.png", "2 images are renamed",
    ]  # fmt: skip
    assert ingest(photos, prune=True).pruned == 1
    rows = connection.execute("select path, caption, image_id from imgsearch.image").fetchall()
    moved = {path: caption for path, caption, _ in rows if caption != f"of {path}"}
    assert sorted(moved) == ["a/zwilling.png", "new name.png"]
    assert sorted(moved.values()) == ["of a/00.png", "of a/twin.png"]
    assert {caption: image_id for _, caption, image_id in rows} == {
        caption: image_id for caption, image_id in before.items() if caption != "of b/08.png"
    }


def test_what_patterns_exclude_is_not_pruned(photos: Path, ingest: Ingest, connection: Connection, url: str) -> None:
    """It was not looked for; and a dry run tells what would be refused."""
    ingest(photos)
    for include, exclude in ((), ("a/",)), ((), ("*0?.png",)), (("b/*",), ()), (("0?.png",), ("b/",)):
        chosen = folder_source(photos, Selection(include, exclude))
        assert ingest(chosen, prune_all=True, prune=True).pruned == 0
        assert dry_run(url, chosen, ["palette"], run.Options(prune=True)).left_out[-1] == "--prune would delete nothing"
    assert one(connection, "select count(*) from imgsearch.image") == 12
    shutil.rmtree(photos / "b")
    told = dry_run(url, folder_source(photos), ["palette"], run.Options(prune=True)).left_out
    assert told[0].startswith("--prune would delete 4 of 12")
    assert told[1].startswith("without --prune-all nothing would be pruned: it would delete more than a fifth")
    assert ingest(folder_source(photos, Selection((), ("a/",))), prune=True, prune_all=True).pruned == 4


def test_folders_of_one_name_have_collections_of_their_own(
    tmp_path: Path, ingest: Ingest, connection: Connection
) -> None:
    for number in range(3):
        photo(tmp_path / str(number) / "photos" / "a.png", seed=number)
        assert ingest(tmp_path / str(number) / "photos").collection == (
            "photos" if number == 0 else f"photos-{number + 1}"
        )
        assert counts(ingest(tmp_path / str(number) / "photos")) == ZERO | {"unchanged": 1}
    assert one(connection, "select count(distinct root) from imgsearch.collection") == 3


def test_what_a_delete_by_sql_leaves_is_found_and_pruned(
    photos: Path, ingest: Ingest, connection: Connection, cli: Callable[..., Any], tmp_path: Path
) -> None:
    ingest(photos)
    photo(tmp_path / "other" / "1.png", seed=70)
    ingest(tmp_path / "other")
    connection.execute("delete from imgsearch.collection where name = 'other'")
    assert "1 have no image any more" in cli("doctor", "--no-canary").stdout
    ingest(photos, prune=True)
    assert one(connection, "select count(*) from imgsearch.content") == 12
    assert one(connection, "select count(*) from imgsearch.embedding_palette_32") == 12
    assert "no image any more" not in cli("doctor", "--no-canary").stdout


def test_a_model_that_another_session_removes_is_named(
    photos: Path, ingest: Ingest, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others have is kept, and the same command adds it anew."""
    photo(photos / "c" / "late.png", seed=50)
    write = run._write

    def late(*arguments: Any) -> None:
        connection.execute(
            "delete from imgsearch.alias where model_id = (select model_id from imgsearch.model where name = 'pdq')"
        )
        connection.execute("select imgsearch.drop_model('pdq')")
        write(*arguments)

    monkeypatch.setattr(run, "_write", late)
    with pytest.raises(ModelError, match="another session removed pdq while this ran"):
        ingest(photos, "palette", "pdq")
    assert one(connection, "select status from imgsearch.ingest_run") == "failed"
    monkeypatch.setattr(run, "_write", write)
    assert counts(ingest(photos, "palette", "pdq"), "pdq") == ZERO | {"embedded": 13}


def test_no_run_goes_on_after_its_process(
    photos: Path, ingest: Ingest, connection: Connection, url: str, cli: Callable[..., Any]
) -> None:
    """A killed one is shown as interrupted, and closed by the next run, also into another collection."""
    ingest(photos)
    connection.execute("update imgsearch.ingest_run set status = 'running', ended_at = null")

    def shown() -> str:
        return str(json.loads(cli("stats", "--json").stdout)["runs"][-1]["status"])

    assert shown() == "interrupted"
    with connect(url) as other:
        collection = one(connection, "select collection_id from imgsearch.collection")
        assert locks.take(other, locks.INGEST, collection)
        assert shown() == "running"
        ingest(photos / "a", collection="another")
        assert shown() == "running"
    with connect(url) as other:
        assert locks.take(other, locks.INGEST, collection)  # once the server has let go of it
    ingest(photos / "b", collection="a third")
    assert one(connection, "select array_agg(distinct status) from imgsearch.ingest_run") == ["complete", "interrupted"]


def test_contents_that_another_session_removes_fail_alone(
    photos: Path, ingest: Ingest, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is stored and the writing; the next run reads their files."""
    ingest(photos)
    shutil.copytree(photos, tmp_path / "again")
    photo(tmp_path / "again" / "new.png", seed=99)
    write = run._write

    def late(*arguments: Any) -> None:
        connection.execute("delete from imgsearch.image where path in ('a/00.png', 'b/08.png')")
        connection.execute("select imgsearch._sweep(array(select content_id from imgsearch.content))")
        write(*arguments)

    monkeypatch.setattr(run, "_write", late)
    assert counts(ingest(tmp_path / "again", collection="again")) == ZERO | {"embedded": 1, "reused": 10, "failed": 2}
    assert "another session removed" in one(connection, "select min(message) from imgsearch.ingest_failure")
    monkeypatch.setattr(run, "_write", write)
    assert counts(ingest(tmp_path / "again", collection="again")) == ZERO | {"embedded": 2, "unchanged": 11}
    assert one(connection, "select count(*) from imgsearch.ingest_failure") == 0


def test_contents_are_stored_while_others_sweep_them(
    url: str, photos: Path, ingest: Ingest, connection: Connection
) -> None:
    """However often one that is there goes before it is locked."""
    ingest(photos)
    facts = connection.execute(
        "select array_agg(sha256), array_agg(pixel_hash), array_agg(bytes), array_agg(width), array_agg(height), "
        "array_agg(format), array_agg(about::text) from imgsearch.content"
    ).fetchone()
    assert facts is not None
    connection.execute("delete from imgsearch.image")
    stop = threading.Event()

    def sweep() -> None:
        with psycopg.connect(url, autocommit=True) as other:
            while not stop.is_set():
                with suppress(psycopg.errors.DeadlockDetected):  # which our commands try again
                    other.execute("select imgsearch._sweep(array(select content_id from imgsearch.content))")

    sweeping = threading.Thread(target=sweep)
    sweeping.start()
    try:
        for _ in range(300):
            with suppress(psycopg.errors.DeadlockDetected):
                row = connection.execute(
                    "select count(*) from imgsearch._store_contents(array(select generate_series(1, 12)), %s, %s, %s, "
                    "%s, %s, %s, %s::text[]::jsonb[], false)", facts,
                ).fetchone()  # fmt: skip
                assert row == (12,)
    finally:
        stop.set()
        sweeping.join()


def test_rows_that_cannot_be_read_prune_nothing(
    photos: Path, ingest: Ingest, connection: Connection, tmp_path: Path
) -> None:
    """Of a row with a bad column the image is known; of one that cannot be read at all, none is known to be gone."""
    paths = [str(path) for path in sorted(photos.glob("*/*.png"))]
    listed = tmp_path / "list.jsonl"

    def write(**change: str) -> None:
        rows = [json.dumps({"path": path, "n": number}) for number, path in enumerate(paths)]
        listed.write_text("\n".join(change.get(f"row_{number}", row) for number, row in enumerate(rows)))

    def run_it(**options: Any) -> dict[str, int]:
        return counts(ingest(list_source(str(listed)), "palette", collection="l", **options))

    write()
    assert run_it() == ZERO | {"embedded": 12}
    write(
        row_3=json.dumps({"path": paths[3], "metadata": "oops"}),
        row_5=json.dumps({"path": paths[5], "n": float("inf")}),
    )
    with pytest.raises(SourceError, match="cannot prune: row 6 could not be read"):
        run_it(prune=True)
    write(row_3=json.dumps({"path": paths[3], "metadata": "oops"}))
    assert run_it(prune=True) == ZERO | {"unchanged": 11, "failed": 1}
    assert one(connection, "select count(*) from imgsearch.image") == 12
    assert one(connection, "select key from imgsearch.ingest_failure") == paths[3]
    write()
    assert run_it(prune=True) == ZERO | {"unchanged": 12}
    assert one(connection, "select count(*) from imgsearch.ingest_failure") == 0


def test_a_source_that_is_suddenly_small_is_not_pruned(ingest: Ingest, photos: Path, connection: Connection) -> None:
    ingest(photos)
    everything = one(connection, "select count(*) from imgsearch.image")
    kept = {path: path.read_bytes() for path in photos.glob("*/*.png")}
    for path in photos.glob("a/*.png"):
        path.unlink()
    with pytest.raises(SourceError, match=r"a is empty, and held images"):
        ingest(photos, prune=True)
    (photos / "a").rmdir()
    with pytest.raises(SourceError, match="more than a fifth, 8 of 12 images"):
        ingest(photos, prune=True)
    shutil.rmtree(photos / "b")
    with pytest.raises(SourceError, match="names no image"):
        ingest(photos, prune=True)
    assert one(connection, "select count(*) from imgsearch.image") == everything
    for path, data in kept.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (photos / "b" / "08.png").unlink()
    assert ingest(photos, prune=True).pruned == 1
    shutil.rmtree(photos / "a")
    assert ingest(photos, prune=True, prune_all=True).pruned == 8


def test_rehash_notices_what_size_and_time_do_not_tell(ingest: Ingest, photos: Path, connection: Connection) -> None:
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(photos / "a.bmp")
        os.utime(photos / "a.bmp", (1.6e9, 1.6e9))
        report = counts(ingest(photos))
    assert report["unchanged"] == 13
    assert counts(ingest(photos, rehash=True)) == ZERO | {"reused": 12, "embedded": 1}
    assert counts(ingest(photos)) == ZERO | {"unchanged": 13}


def test_a_row_that_the_database_refuses_fails_alone(ingest: Ingest, photos: Path, connection: Connection) -> None:
    """Whatever its bounds do not foresee: a rule of the application's own, and a text of too many words."""
    connection.execute("alter table imgsearch.image add constraint rule check (path !~ '0[35]')")
    words = " ".join(f"w{number:05}" for number in range(130_000))

    def told(files: Iterator[ScannedFile]) -> Iterator[ScannedFile]:
        for file in files:
            yield replace(file, caption=words) if file.path.endswith("07.png") else file

    assert counts(ingest(photos, refine=told)) == ZERO | {"embedded": 9, "failed": 3}
    rows = connection.execute("select path, error_class, message from imgsearch.ingest_failure order by 1").fetchall()
    assert [row[0] for row in rows] == ["a/03.png", "a/05.png", "a/07.png"]
    assert {row[1] for row in rows} == {"UnstorableRow"}
    assert "tsvector" in rows[2][2]
    connection.execute("alter table imgsearch.image drop constraint rule")
    assert counts(ingest(photos)) == ZERO | {"unchanged": 9, "embedded": 3}  # they are tried again
    assert one(connection, "select count(*) from imgsearch.ingest_failure") == 0


def test_the_bounds_of_rows_are_those_of_the_tables(connection: Connection) -> None:
    """What is checked before a row is written is what its table takes."""
    checks = "\n".join(row[0] for row in connection.execute(
        "select pg_get_constraintdef(oid) from pg_constraint where contype = 'c' and conrelid = 'imgsearch.image'::regclass"
    ))  # fmt: skip
    for column in ("key", "path", "group_key"):
        assert f"octet_length({column}) <= {MOST_KEY})" in checks
    assert f"octet_length(caption) <= {MOST_CAPTION})" in checks
    assert f"octet_length((metadata)::text) <= {MOST_METADATA})" in checks


def test_what_a_camera_wrote_is_metadata(
    ingest: Ingest, connection: Connection, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Beside what is given, which counts; not taken away by a rerun, a rename or another path of the same file."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Example", "Model 5"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:05 10:00:00"
    folder = tmp_path / "shots"
    folder.mkdir()
    Image.effect_noise((80, 60), 50).convert("RGB").save(folder / "a.jpg", exif=exif)
    shutil.copy(folder / "a.jpg", folder / "b.jpg")
    Image.effect_noise((80, 60), 50).convert("RGB").save(folder / "plain.jpg")
    about = tmp_path / "about.csv"
    about.write_text("path,camera,price\na.jpg,mine,5\n")

    def stored() -> dict[str, Any]:
        return dict(connection.execute("select path, metadata from imgsearch.image order by path").fetchall())

    told = {"taken_at": "2024-05-05T10:00:00.000000", "camera": "Example Model 5"}
    expected = {"a.jpg": told | {"camera": "mine", "price": "5"}, "b.jpg": told, "plain.jpg": {}}
    for _ in range(2):
        done = cli("--json", "ingest", str(folder), "-m", "palette", "--metadata", str(about))
        assert done.returncode == 0, done.stderr
        assert stored() == expected
    cli("ingest", str(folder), "-m", "palette")
    assert stored() == expected
    (folder / "a.jpg").rename(folder / "c.jpg")
    cli("ingest", str(folder), "-m", "palette", "--prune-all")
    assert stored() == {"b.jpg": told, "c.jpg": expected["a.jpg"], "plain.jpg": {}}
    cli("ingest", str(folder), "-m", "palette", "-c", "without", "--no-exif")
    rows = connection.execute("select metadata from imgsearch.image join imgsearch.collection l using (collection_id) "
                              "where l.name = 'without'").fetchall()  # fmt: skip
    assert rows == [({},)] * 3
