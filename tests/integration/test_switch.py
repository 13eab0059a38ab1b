"""Another model behind an alias: filled from stored files, verified, moved at once, and back, while others ask and ingest."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image

from pgimgsearch.database import locks
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import Coverage, count_coverage, get_model, list_aliases, list_models, remove_model
from pgimgsearch.database.texts import cache_texts
from pgimgsearch.embeddings.open_models import ModelRequest, add_model
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.errors import (
    BusyError,
    DatabaseError,
    DiskFullError,
    DriftError,
    InterruptedRun,
    ModelError,
    UsageError,
)
from pgimgsearch.indexing.build import BuildOptions, BuildResult, build_index
from pgimgsearch.ingest import backfill, write
from pgimgsearch.ingest.backfill import fill_stored
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.operations import compare, switch
from pgimgsearch.reporter import SILENT
from pgimgsearch.sources import sidecar
from pgimgsearch.sources.folder import files_source
from tests.conftest import judge_at, values
from tests.support.images import photo
from tests.support.roles import drop_roles

pytestmark = pytest.mark.slow

SEEDS = (3, 4, 5, 6, 8, 10, 13, 14, 15, 16, 18, 20)  # drawn with enough detail for a hash


@pytest.fixture
def detailed(tmp_path: Path) -> Path:
    """Twelve images that a hash can tell, in two folders, and a copy."""
    folder = tmp_path / "detailed"
    for number, seed in enumerate(SEEDS):
        photo(folder / "ab"[number % 2] / f"{number:02}.png", seed=seed)
    shutil.copy(folder / "a" / "00.png", folder / "b" / "copy.png")
    return folder


def moved(url: str, target: str = "pdq", **request: Any) -> switch.SwitchResult:
    return switch.switch(url, switch.SwitchRequest("default", target, **request), SILENT)


def meant(connection: Connection) -> str | None:
    return list_aliases(connection).get("default")


def rollback(connection: Connection, alias: str = "default") -> str:
    row = connection.execute("select imgsearch.rollback_alias(%s)", [alias]).fetchone()
    assert row is not None
    return str(row[0])


def test_a_switch_fills_from_stored_files_and_goes_back_and_forth(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    ingest(detailed / "a", "palette", collection="one")
    ingest(detailed / "b", "palette", collection="two")
    ingest(files_source([detailed / "a" / "00.png"], detailed), "palette", collection="list")
    before = connection.execute("select count(*) from imgsearch.image").fetchone()
    done = moved(url)
    assert (done.old, done.new, done.coverage) == ("palette", "pdq", Coverage(12, 12, 0, 0))
    assert done.recall == 1
    assert done.overlap is not None
    assert 0 < done.overlap <= 1
    assert meant(connection) == "pdq"
    assert connection.execute("select count(*) from imgsearch.image").fetchone() == before
    kept = (
        "select source, status, counts -> 'pdq' ->> 'embedded' from imgsearch.ingest_run order by run_id desc limit 1"
    )
    assert connection.execute(kept).fetchone() == ("models fill", "complete", "12")
    status = "select status, index_method from imgsearch.model where name = 'pdq'"
    assert connection.execute(status).fetchone() == ("ready", "hnsw")
    with connect(url) as opened:
        assert [rollback(opened) for _ in range(3)] == ["palette", "pdq", "palette"]
    assert meant(connection) == "palette"
    history = count(connection, "imgsearch.alias_history")
    assert moved(url, "palette").coverage.missing == 0  # a script may say it again
    assert count(connection, "imgsearch.alias_history") == history
    for alias in ("", " ", "default "):
        with pytest.raises(psycopg.Error, match="an alias is a word"):
            connection.execute("select imgsearch.set_alias(%s, 'pdq')", [alias])
    with pytest.raises(ModelError, match="pdq cannot read text"):
        switch.switch(url, switch.SwitchRequest("text", "pdq"), SILENT)
    connection.execute("select imgsearch.set_alias('mine', 'pdq')")
    with connect(url) as opened, pytest.raises(Exception, match="meant no other model before"):
        rollback(opened, "mine")


def test_a_rollback_to_a_model_without_vectors_is_refused(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    ingest(detailed, "palette")
    moved(url)
    connection.execute("select imgsearch.set_alias('text', null)")
    connection.execute("select imgsearch.drop_model('palette')")
    with pytest.raises(psycopg.Error, match="the model palette that alias default meant before was removed"):
        rollback(connection)
    connection.execute("select imgsearch.add_model('palette', 32, 'palette', 'cielab-1', 'histogram')")
    with pytest.raises(psycopg.Error, match="palette that alias default meant before has no vectors any more"):
        rollback(connection)
    assert meant(connection) == "pdq"


def test_texts_that_were_asked_are_found_again(
    url: str, detailed: Path, photos: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    for folder in (detailed, photos):
        ingest(folder, "palette")
    with connect(url) as opened:
        model = open_model(opened, "palette")
        for template in ("{}", "a {} wall"):
            cache_texts(opened, model.stored, ["red", "blue"], model.embed_texts(["red", "blue"], template), template)
    add_model(url, ModelRequest(["palette"], dim=8, reduction="truncate"), SILENT)
    switch.switch(url, switch.SwitchRequest("text", "palette@8", recall=0), SILENT)
    assert store_text(connection) == "palette@8"
    for text, template in (("red", "{}"), ("blue", "a {} wall")):
        rows = connection.execute(
            "select * from imgsearch.search_text(%s, template => %s)", [text, template]
        ).fetchall()
        assert len(rows) == 10


def store_text(connection: Connection) -> str | None:
    return list_aliases(connection).get("text")


def test_files_that_are_gone_keep_the_old_model(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    Image.new("RGB", (64, 64), "white").save(detailed / "a" / "plain.png")
    ingest(detailed, "palette")
    (detailed / "a" / "00.png").unlink()  # its copy is there
    (detailed / "a" / "02.png").unlink()
    with pytest.raises(ModelError, match="pdq misses 1 of 13 contents; default stays palette") as raised:
        moved(url)
    assert "--allow-missing 1" in str(raised.value.hint)
    assert meant(connection) == "palette"
    failed = connection.execute("select path, kind from imgsearch.ingest_failure order by path").fetchall()
    assert failed == [("a/02.png", "failed"), ("a/plain.png", "skipped")]
    shutil.copy(detailed / "a" / "04.png", detailed / "a" / "02.png")  # another image by that name is not that one
    with pytest.raises(ModelError, match="pdq misses 1 of 13"):
        moved(url)
    reason = "select message from imgsearch.ingest_failure where kind = 'failed'"
    assert connection.execute(reason).fetchone() == ("the file has other bytes than those that were ingested",)
    images = "select count(*), count(distinct content_id) from imgsearch.image"
    assert connection.execute(images).fetchone() == (14, 13)  # those who ask the old model miss nothing
    done = moved(url, allow_missing=1)
    assert done.coverage == Coverage(13, 11, 1, 1)
    assert meant(connection) == "pdq"


def test_a_switch_that_is_stopped_goes_on(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(detailed, "palette")
    embedded: list[int] = []
    whole = write.EmbeddingWriter.write

    def then_stop(keeper: Any, chunk: list[write.MissingContent]) -> None:
        whole(keeper, chunk)
        embedded.append(len(chunk))
        if len(embedded) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(write.EmbeddingWriter, "write", then_stop)
    monkeypatch.setattr(backfill, "CHUNK", 5)
    with pytest.raises(InterruptedRun, match="goes on from there"):
        moved(url)
    assert meant(connection) == "palette"
    assert connection.execute("select count(*) from imgsearch.embedding_pdq_256").fetchone() == (5,)
    assert moved(url).coverage == Coverage(12, 12, 0, 0)
    assert sum(embedded) == 12  # none twice


def test_two_switches_of_one_alias_do_not_meet(url: str, detailed: Path, ingest: Callable[..., Any]) -> None:
    ingest(detailed, "palette")
    with (
        connect(url) as opened,
        locks.exclusive(opened, "switch.default", 0, "busy"),
        pytest.raises(BusyError, match="another switch of default is running"),
    ):
        moved(url)
    moved(url)


def test_nobody_who_asks_or_ingests_meanwhile_notices(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    """Queries by the alias answer from one model or the other; what arrives is filled by the switch."""
    ingest(detailed, "palette")
    done, answers, errors = threading.Event(), 0, []

    def ask() -> None:
        nonlocal answers
        with psycopg.connect(url, autocommit=True) as own:
            while not done.is_set():
                try:
                    rows = own.execute("select similarity from imgsearch.similar(1, k => 5)").fetchall()
                    assert len(rows) == 5
                    answers += 1
                except Exception as error:
                    errors.append(error)

    def arrive() -> None:
        for seed in (22, 25, 27, 28, 31, 32):
            photo(detailed / "late" / f"{seed}.png", seed=seed)
            ingest(detailed, *(["palette", "pdq"] if seed % 2 else ["palette"]))

    threads = [threading.Thread(target=target) for target in (ask, ask, arrive)]
    for thread in threads:
        thread.start()
    moved(url, max_load=0.5)
    for _ in range(4):
        with connect(url) as opened:
            rollback(opened)
    threads[2].join()
    done.set()
    for thread in threads[:2]:
        thread.join()
    assert errors == []
    assert answers > 10
    with connect(url) as opened:
        assert meant(opened) == "pdq"
        assert count_coverage(opened, get_model(opened, "pdq")).contents == 18
        quiet: dict[str, Any] = {"max_load": 1.0, "reporter": SILENT}
        fill_stored(url, "pdq", Checkpoint(), Placement(), **quiet)
        assert count_coverage(opened, get_model(opened, "pdq")) == Coverage(18, 18, 0, 0)


def test_an_alias_that_nobody_has_is_not_touched(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """palette reads text, and nothing here did: aliases move when someone says so."""
    ingest(detailed, "pdq")
    assert set(list_aliases(connection)) == {"default", "duplicates"}
    whole = write.EmbeddingWriter.write

    def then_stop(keeper: Any, chunk: list[write.MissingContent]) -> None:
        whole(keeper, chunk)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(write.EmbeddingWriter, "write", then_stop)
        patched.setattr(backfill, "CHUNK", 5)
        with pytest.raises(InterruptedRun):
            moved(url, "palette")
    assert list_aliases(connection) == {"default": "pdq", "duplicates": "pdq"}
    moved(url, "palette")
    assert list_aliases(connection) == {"default": "palette", "duplicates": "pdq"}


def test_duplicates_follows_default_again_after_a_rollback(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    ingest(detailed, "palette")
    done = switch.switch(url, switch.SwitchRequest("duplicates", "pdq"), SILENT)
    assert (done.old, done.new) == ("palette", "pdq")
    assert [rollback(connection, "duplicates") for _ in range(2)] == ["palette", "pdq"]
    assert rollback(connection, "duplicates") == "palette"
    assert "duplicates" not in list_aliases(connection)


def test_a_skip_is_said_of_the_bytes(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    """A flat image has no hash; once there is another by that name, it is asked for again."""
    Image.new("RGB", (64, 64), "white").save(detailed / "a" / "plain.png")
    ingest(detailed, "palette")
    assert moved(url).coverage == Coverage(13, 12, 1, 0)
    photo(detailed / "a" / "plain.png", seed=22)
    ingest(detailed, "palette")
    exactly = "select skipped, missing from imgsearch.coverage(exact => true) where model = 'pdq'"
    assert connection.execute(exactly).fetchone() == (0, 1)
    with pytest.raises(psycopg.Error, match="pdq misses 1 of 13 contents; alias mine stays") as raised:
        connection.execute("select imgsearch.switch_alias('mine', 'pdq')")
    assert raised.value.sqlstate == "PI015"
    quiet: dict[str, Any] = {"max_load": 1.0, "reporter": SILENT}
    name, covered = fill_stored(url, "default", Checkpoint(), Placement(), **quiet)
    assert (name, covered) == ("pdq", Coverage(13, 13, 0, 0))
    connection.execute("select imgsearch.switch_alias('mine', 'pdq')")


def test_what_would_stop_a_switch_is_said_before_anything_is_stored(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection, admin: Connection, tmp_path: Path
) -> None:
    ingest(detailed, "palette")
    with pytest.raises(ModelError, match="palette is the name of a model"):
        switch.switch(url, switch.SwitchRequest("palette", "pdq"), SILENT)
    with pytest.raises(UsageError, match="cannot write"):
        moved(url, html=tmp_path / "nowhere" / "page.html")
    with pytest.raises(ModelError, match="unknown model: pdqq"):
        moved(url, "pdqq")
    admin.execute("drop role if exists no_owner")
    admin.execute("create role no_owner login")
    connection.execute("select imgsearch.grant_access('no_owner', 'writer')")
    with pytest.raises(DatabaseError, match="does not own the tables"):
        moved(url.replace("pgimgsearch@", "no_owner@"))
    assert [model.name for model in list_models(connection)] == ["palette"]
    drop_roles(url, "no_owner")


def test_an_alias_that_moved_meanwhile_stays_there(
    url: str, detailed: Path, photos: Path, ingest: Callable[..., Any], connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for folder in (detailed, photos):  # enough to fit on
        ingest(folder, "palette")
    add_model(url, ModelRequest(["palette"], dim=8, reduction="truncate", store_as="small"), SILENT)
    carried = switch._carry_texts

    def then_move(*arguments: Any) -> Any:
        connection.execute("select imgsearch.set_alias('default', 'small')")
        return carried(*arguments)

    monkeypatch.setattr(switch, "_carry_texts", then_move)
    with pytest.raises(ModelError, match="default was moved to small in the meantime"):
        moved(url, allow_missing=12)
    assert meant(connection) == "small"


def test_weights_that_changed_on_the_way_are_refused(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(detailed, "palette")
    add_model(url, ModelRequest(["pdq"], claim=False), SILENT)
    connection.execute("update imgsearch.model set fingerprint = 'of other weights' where name = 'pdq'")
    with pytest.raises(DriftError, match="pdq is not the one whose vectors are stored"):
        moved(url)
    assert (meant(connection), count(connection, "imgsearch.embedding_pdq_256")) == ("palette", 0)


def test_an_index_that_could_not_be_built_leaves_nothing(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    """As where the disk is full: the server says so when the index is there, and has to be dropped."""
    ingest(detailed, "palette")
    with psycopg.connect(url, user="postgres", autocommit=True) as superuser:
        superuser.execute(
            "create function public.full_disk() returns event_trigger language plpgsql as $$ begin raise exception "
            "'could not extend file' using errcode = 'disk_full'; end $$"
        )
        superuser.execute(
            "create event trigger full_disk on ddl_command_end when tag in ('CREATE INDEX') "
            "execute function public.full_disk()"
        )
        with pytest.raises(DiskFullError, match="the index of pdq was not built, and its unfinished part was dropped"):
            moved(url)
        assert (
            connection.execute("select relname from pg_class where relname ~ 'hnsw' and relname ~ 'pdq'").fetchall()
            == []
        )
        assert meant(connection) == "palette"
        superuser.execute("drop event trigger full_disk")
    assert moved(url).recall == 1
    assert meant(connection) == "pdq"


def test_images_that_come_in_the_last_moment_do_not_stop_a_switch(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(detailed / "a", "palette")
    counted = backfill.count_coverage

    def then_arrive(*arguments: Any) -> Any:
        ingest(detailed / "b", "palette", collection="late")
        return counted(*arguments)

    monkeypatch.setattr(backfill, "count_coverage", then_arrive)
    done = moved(url)
    assert (done.coverage.contents, done.coverage.missing) == (12, 0)  # there was time to pick them up
    monkeypatch.setattr(switch, "MOST_LATE", 0)
    connection.execute("select imgsearch.set_alias('default', 'palette')")
    connection.execute("delete from imgsearch.embedding_pdq_256 where content_id > 6")
    with monkeypatch.context() as patched:
        patched.setattr(backfill, "_pages", lambda *_: iter([]))
        with pytest.raises(ModelError, match="6 images arrive faster than pdq is filled; default stays palette"):
            moved(url)


def test_a_stop_is_heard_where_there_is_nothing_to_fill(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(detailed, "palette", "pdq")
    counted = backfill.count_coverage

    def then_stop(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return counted(*arguments)

    monkeypatch.setattr(backfill, "count_coverage", then_stop)
    with pytest.raises(InterruptedRun):
        moved(url)
    assert meant(connection) == "palette"


def test_those_who_read_are_never_held_up_by_an_index(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    """A transaction that has read the table stays open; those who ask after the build began are answered."""
    ingest(detailed, "palette")
    asked: list[int] = []

    def ask(*_: Any) -> None:
        with psycopg.connect(url, autocommit=True, options="-c statement_timeout=5000") as own:
            asked.append(len(own.execute("select * from imgsearch.similar(1, k => 5)").fetchall()))

    with psycopg.connect(url) as reading, connect(url) as opened:
        reading.execute("select count(*) from imgsearch.embedding_palette_32")
        model = get_model(opened, "default")
        building = threading.Thread(target=build_index, args=[opened, model, BuildOptions(64, concurrently=True)])
        building.start()
        swapped = "select count(*) = 1 from pg_class where relname = 'embedding_palette_32_hnsw__old'"
        while connection.execute(swapped).fetchone() != (True,):  # it is dropped when the reader has ended
            assert building.is_alive()
            ask()
        ask()
        reading.rollback()
        building.join()
    assert set(asked) == {5}
    left = "select relname from pg_class where relname ~ 'embedding_palette_32_hnsw' order by 1"
    assert connection.execute(left).fetchall() == [("embedding_palette_32_hnsw",)]  # type: ignore[call-overload]


def test_a_build_that_is_stopped_leaves_nothing(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    ingest(detailed, "palette")
    with connect(url) as opened, psycopg.connect(url) as writing:
        writing.execute("lock table imgsearch.embedding_palette_32 in row exclusive mode")
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            build_index(opened, get_model(opened, "default"), BuildOptions(64, concurrently=True))
    with connect(url) as opened:
        assert build_index(opened, get_model(opened, "default"), BuildOptions(64, concurrently=True)) == BuildResult(
            "hnsw", 64, 100, 1.0
        )
        connection.execute("select imgsearch.set_index('default', 'none')")
        assert build_index(opened, get_model(opened, "default"), BuildOptions(64)) is None
    assert connection.execute("select relname from pg_class where relname ~ 'palette_32_hnsw'").fetchall() == []


def test_a_declared_model_is_completed_by_who_may(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection, admin: Connection
) -> None:
    ingest(detailed, "palette")
    connection.execute("select imgsearch.add_model('pdq', 256, 'pdq', 'pdqhash', 'hash', 'bit')")
    admin.execute("drop role if exists a_writer")
    admin.execute("create role a_writer login")
    connection.execute("select imgsearch.grant_access('a_writer', 'writer')")
    theirs = url.replace("pgimgsearch@", "a_writer@")
    quiet: dict[str, Any] = {"max_load": 1.0, "reporter": SILENT}
    with connect(theirs) as opened:
        assert open_model(opened, "pdq").stored.fingerprint is not None  # to ask with
    with pytest.raises(ModelError, match="pdq is declared, and was never loaded"):
        fill_stored(theirs, "pdq", Checkpoint(), Placement(), **quiet)
    kept = "select fingerprint is null, near is null from imgsearch.model where name = 'pdq'"
    assert connection.execute(kept).fetchone() == (True, True)
    fill_stored(url, "pdq", Checkpoint(), Placement(), **quiet)
    assert connection.execute(kept).fetchone() == (False, False)
    assert fill_stored(theirs, "pdq", Checkpoint(), Placement(), **quiet)[1].missing == 0
    drop_roles(url, "a_writer")


def test_a_model_that_is_filled_is_left_alone(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    ingest(detailed, "palette")
    added = add_model(url, ModelRequest(["pdq"], claim=False), SILENT).stored
    with connect(url) as opened, locks.exclusive(opened, locks.FILL, added.model_id, "busy"):
        ingest(detailed / "a", "pdq")
        state = "select status, index_method from imgsearch.model where name = 'pdq'"
        assert connection.execute(state).fetchone() == ("building", "none")
        with pytest.raises(BusyError, match="another session fills pdq"):
            moved(url)
        with connect(url) as other, pytest.raises(BusyError, match="another session fills pdq"):
            remove_model(other, "pdq")
    connection.execute("delete from imgsearch.embedding_pdq_256 where content_id > 1")
    photo(detailed / "new" / "0.png", seed=22)
    ingest(detailed / "new", "pdq")  # it lacks most of the images, and an index would only slow its filling down
    assert connection.execute(state).fetchone() == ("building", "none")
    ingest(detailed, "pdq")
    assert connection.execute(state).fetchone() == ("ready", "hnsw")


def test_a_text_that_the_new_model_cannot_read_is_counted(
    url: str, detailed: Path, photos: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    for folder in (detailed, photos):
        ingest(folder, "palette")
    with connect(url) as opened:
        model = open_model(opened, "palette")
        cache_texts(opened, model.stored, ["red", "of no colour", "blue"], model.embed_texts(["red", "red", "blue"]))
    add_model(url, ModelRequest(["palette"], dim=8, reduction="truncate", store_as="small"), SILENT)
    assert moved(url, "small", recall=0).texts == switch.CarriedTexts(carried=2, refused=("of no colour",))


def test_a_model_in_use_is_not_removed(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection
) -> None:
    ingest(detailed, "palette", "pdq")
    with pytest.raises(ModelError, match="model palette is in use by alias default"), connect(url) as opened:
        remove_model(opened, "palette")
    connection.execute("select imgsearch.set_alias('duplicates', null)")
    connection.execute("create view public.mine as select image_id, embedding from imgsearch.images_pdq")
    with pytest.raises(DatabaseError, match="mine"), connect(url) as opened:
        remove_model(opened, "pdq")
    assert count(connection, "imgsearch.images_pdq") == 13
    connection.execute("drop view public.mine")
    with connect(url) as opened:
        remove_model(opened, "pdq")
    left = "select relname from pg_class where relname ~ 'pdq'"
    assert connection.execute(left).fetchall() == []  # type: ignore[call-overload]


def test_both_models_side_by_side(
    url: str, detailed: Path, ingest: Callable[..., Any], connection: Connection, tmp_path: Path
) -> None:
    """Each figure as the single commands give it, and a page with the images on which the models disagree most."""
    ingest(detailed, "palette", "pdq", refine=lambda files: sidecar.with_groups(files, "folder"))
    connection.execute(
        "update imgsearch.image set metadata = jsonb_build_object('kind', split_part(path, '/', 1)), caption = path"
    )
    page = tmp_path / "page.html"
    request = compare.CompareRequest("palette", "pdq", key="kind", sample=12, html=page)
    found = compare.compare(url, request, SILENT)
    rows = {row.measure: row for row in found.rows}
    assert found.models == ("palette", "pdq")
    common = rows["neighbours in common, of 10"].both
    expected = connection.execute(
        "select avg((select count(*) from imgsearch.similar(i, model => 'palette') a join imgsearch.similar(i, model => 'pdq') b "
        "using (image_id)) / 10.0)::float from (select min(image_id) as i from imgsearch.image group by content_id) i"
    ).fetchone()
    assert expected == (pytest.approx(common),)
    judged = values(judge_at(url, "classes", "palette", "pdq", key="kind"))
    assert rows["classes p@1"].one == judged["palette"]["p@1"]
    assert rows["classes knn"].other == judged["pdq"]["knn"]
    grouped = values(judge_at(url, "instances", "palette", "pdq"))
    assert rows["instances map"].other == grouped["pdq"]["map"]
    assert not any(measure.startswith("text-to-image") for measure in rows)  # pdq reads none
    assert (rows["dimensions"].one, rows["dimensions"].other) == (32, 256)
    assert rows["contents embedded"].other == 12
    text = page.read_text()
    assert text.count("<section>") == 12
    assert text.count("data:image/jpeg;base64,") >= 12 * 21
    with pytest.raises(UsageError, match="are the same model"):
        compare.compare(url, compare.CompareRequest("palette", "default"), SILENT)


def count(connection: Connection, relation: str) -> int:
    row = connection.execute(f"select count(*) from {relation}").fetchone()  # type: ignore[call-overload]
    assert row is not None
    return int(row[0])


def test_the_commands_switch_fill_and_roll_back(cli: Callable[..., Any], detailed: Path) -> None:
    assert cli("ingest", str(detailed / "a"), "-m", "palette").returncode == 0
    done = cli("--json", "models", "switch", "default", "--to", "pdq", "--max-load", "0.9")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["was"], told["is"], told["missing"], told["embedded"]) == ("palette", "pdq", 0, 6)
    assert cli("ingest", str(detailed / "b"), "-m", "pdq").returncode == 0
    back = cli("--json", "models", "rollback", "default")
    assert json.loads(back.stdout) == {"alias": "default", "is": "palette", "missing": 6}
    assert "pgimgsearch models fill palette" in back.stderr
    assert json.loads(cli("--json", "models", "fill", "palette").stdout)["missing"] == 0
    photo(detailed / "b" / "new.png", seed=22)
    counted = json.loads(cli("--json", "ingest", str(detailed / "b"), "--all-models").stdout)
    assert {row["model"]: row["embedded"] for row in counted} == {"palette": 1, "pdq": 1}
    assert cli("ingest", str(detailed), "--all-models", "-m", "pdq").returncode == 2
