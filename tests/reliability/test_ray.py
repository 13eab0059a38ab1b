"""Two Ray workers on one machine: the same rows as the local engine, also when one of them is killed on the way."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import sql

from pgimgsearch.database import migrate
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.embeddings.deferred_models import DeferredModels
from pgimgsearch.embeddings.open_models import ModelRequest, open_models
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.errors import UsageError
from pgimgsearch.ingest import ray as on_ray
from pgimgsearch.ingest import run
from pgimgsearch.ingest.item import OUTCOMES
from pgimgsearch.reporter import SILENT, Reporter
from pgimgsearch.sources.folder import folder_source
from pgimgsearch.sources.parse import shards_of
from pgimgsearch.sources.source import Source
from tests.integration.test_sources import tar_of
from tests.reliability.killable import mortal_server
from tests.support import images
from tests.support.images import photo

pytestmark = pytest.mark.filterwarnings("ignore")

FILES, TWINS, A_PART = 600, 60, 40
MODELS = ["palette", "pdq"]
TABLES = {
    "images": "select i.path, encode(c.sha256, 'hex'), c.width, c.height, i.modified_at from imgsearch.image i "
    "join imgsearch.content c using (content_id) order by 1",
    "palette": "select encode(c.sha256, 'hex'), e.embedding::text from imgsearch.embedding_palette_32 e "
    "join imgsearch.content c using (content_id) order by 1",
    "pdq": "select encode(c.sha256, 'hex'), e.embedding::text from imgsearch.embedding_pdq_256 e "
    "join imgsearch.content c using (content_id) order by 1",
    "failures": "select f.path, m.name, f.kind, f.error_class, f.message, f.bytes from imgsearch.ingest_failure f "
    "left join imgsearch.model m using (model_id) order by 1, 2",
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.many(tmp_path_factory.mktemp("many"), FILES, TWINS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for all tests, as it takes seconds to start."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


def rows(connection: Connection) -> dict[str, list[tuple[object, ...]]]:
    return {name: connection.execute(sql.SQL(query)).fetchall() for name, query in TABLES.items()}  # type: ignore[arg-type]


def ingest(url: str, source: Source, progress: Callable[[int], None] = lambda _: None, **options: bool) -> run.Report:
    request = ModelRequest(MODELS)
    chosen = run.Options(**options)
    models = DeferredModels.of(open_models(url, request, [source], chosen.limits, SILENT))
    return on_ray.ingest_on_ray(
        url,
        source,
        models,
        chosen,
        request=request,
        workers=2,
        reporter=Reporter(progress=lambda done, _: progress(done)),
    )


def locally(url: str, source: Source) -> dict[str, list[tuple[object, ...]]]:
    """What the local engine makes of it; the tables are empty again afterwards."""
    with connect(url) as connection:
        models = [open_model(connection, name) for name in MODELS]
        run.ingest(url, source, models, run.Options(workers=2))
        found = rows(connection)
        connection.execute("truncate imgsearch.content, imgsearch.collection cascade")
    return found


def assert_adds_up(report: run.Report, connection: Connection) -> None:
    for counts in report.counts.values():
        assert counts["scanned"] == sum(counts[name] for name in OUTCOMES) == FILES + TWINS + 1
    stored = connection.execute(
        "select status, counts from imgsearch.ingest_run where source = %s order by run_id desc limit 1",
        [report.source],
    ).fetchone()
    assert stored == ("complete", report.counts)


@pytest.mark.usefixtures("cluster")
def test_the_same_rows_as_the_local_engine_although_a_worker_is_lost(
    url: str, connection: Connection, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "FILES_A_PART", A_PART)
    wanted = locally(url, folder_source(many))
    killed = []

    def kill_one(_: int) -> None:
        workers = [p for p in psutil.process_iter(["cmdline"]) if "Worker" in " ".join(p.info["cmdline"] or [])
                   and (p.info["cmdline"] or [""])[0].startswith("ray::")]  # fmt: skip
        if workers and not killed:
            killed.append(workers[0])
            workers[0].kill()

    report = ingest(url, folder_source(many), kill_one)
    assert killed
    assert_adds_up(report, connection)
    assert rows(connection) == wanted
    again = ingest(url, folder_source(many))
    assert again.counts["palette"]["unchanged"] == FILES + TWINS
    assert rows(connection) == wanted


@pytest.mark.usefixtures("cluster")
def test_contents_that_were_replaced_are_gone(url: str, connection: Connection, tmp_path: Path) -> None:
    for number in range(40):
        photo(tmp_path / f"{number}.png", seed=number)
    ingest(url, folder_source(tmp_path))
    for number in range(20):
        photo(tmp_path / f"{number}.png", seed=100 + number)
        os.utime(tmp_path / f"{number}.png", (1, 1))
    report = ingest(url, folder_source(tmp_path))
    assert (report.counts["palette"]["embedded"], report.counts["palette"]["unchanged"]) == (20, 20)
    assert connection.execute("select count(*) from imgsearch.content").fetchone() == (40,)


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "each"),
    [
        ([{"CPU": 8}, {"CPU": 8}], None, "auto", (2, 8, 0)),
        ([{"CPU": 8}, {"CPU": 2}], 3, "cpu", (3, 2, 0)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 64}], None, "auto", (4, 4, 1)),
        ([{"CPU": 16, "GPU": 4}], 2, "cpu", (2, 8, 0)),
        ([{"CPU": 2}], 2, "auto", (2, 1, 0)),
    ],
)
def test_every_worker_fits_onto_a_machine(
    nodes: list[dict[str, float]], workers: int | None, device: str, each: tuple[int, int, int]
) -> None:
    assert on_ray.shares(nodes, workers, device) == on_ray.Each(*each)
    for too_many, where in ((17, "cpu"), (5, "cuda")):
        with pytest.raises(UsageError, match="too few"):
            on_ray.shares([{"CPU": 16, "GPU": 4}], too_many, where)


@pytest.mark.usefixtures("cluster")
def test_the_database_goes_away(url: str, connection: Connection, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are ended over and over, of workers and of the driver."""
    monkeypatch.setattr(on_ray, "FILES_A_PART", A_PART)
    wanted = locally(url, folder_source(many))
    with psycopg.connect(url, autocommit=True) as killer:

        def end(_: int) -> None:
            killer.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and application_name = 'pgimgsearch'"
            )

        report = ingest(url, folder_source(many), end)
    assert_adds_up(report, connection)
    assert rows(connection) == wanted


@pytest.mark.usefixtures("cluster")
def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "FILES_A_PART", A_PART)
    killed = []
    with mortal_server(tmp_path / "home") as server:
        migrate.upgrade(server.url)
        wanted = locally(server.url, folder_source(many))

        def kill_once(_: int) -> None:
            if not killed:
                killed.append(True)
                server.kill_for_a_moment()

        report = ingest(server.url, folder_source(many), kill_once)
        assert killed
        with psycopg.connect(server.url, autocommit=True) as connection:
            assert_adds_up(report, connection)
            assert rows(connection) == wanted


@pytest.mark.usefixtures("cluster")
def test_shards_go_one_by_one(url: str, connection: Connection, many: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in many.iterdir())
    places = [str(tmp_path / f"{number}.tar") for number in range(4)]
    for number, place in enumerate(places):
        Path(place).write_bytes(tar_of({name: (many / name).read_bytes() for name in names[number::4]}))
    wanted = locally(url, shards_of(places))
    report = ingest(url, shards_of(places))
    assert_adds_up(report, connection)
    assert rows(connection) == wanted


def test_what_needs_one_machine_is_refused(url: str, many: Path) -> None:
    for option in ("prune", "skip_duplicates"):
        with pytest.raises(UsageError, match="does not go with --engine ray"):
            ingest(url, folder_source(many), **{option: True})
