"""What a plan measures and extrapolates: sizes as Postgres has them, times of a trial that leaves nothing."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgimgsearch.cli.plan import parse_count
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import get_model
from pgimgsearch.errors import UsageError
from pgimgsearch.indexing.build import BuildOptions, build_index
from pgimgsearch.indexing.methods import index_row_bytes, index_spec
from pgimgsearch.operations import plan
from pgimgsearch.operations import plan_rates as measure
from pgimgsearch.operations.plan_rates import measure_rates, planned_model
from tests.support.builders import add_images, add_vectors, clustered

pytestmark = pytest.mark.slow

RATES = plan.Rates(2000, 1800, 700, 10_000, 2.0, 50.0, {})
BIG = 64e9


@pytest.fixture
def model(url: str) -> Any:
    """A model of the catalog, 1,024 dimensions wide, that is not stored."""
    with connect(url) as connection:
        return planned_model(connection, "dinov3")


@given(counts=st.tuples(st.integers(1, 10**10), st.integers(1, 10**10)))
def test_more_images_never_cost_less(counts: tuple[int, int]) -> None:
    few, many = sorted(counts)
    costs = [(count * RATES.table_row, plan.build_seconds(count, RATES) or 0.0) for count in (few, many)]
    assert costs[0] <= costs[1]
    assert plan.build_seconds(RATES.trial_rows, RATES) == pytest.approx(RATES.trial_seconds)


def test_advice_comes_where_a_limit_is_reached(model: Any) -> None:
    def told(images: int, memory: float = BIG) -> list[str]:
        return [line.partition(":")[0] for line in plan.plan(images, model, RATES, memory).advice]

    assert told(1_000_000) == []
    assert told(12_000_000) == ["quantize"]
    assert told(30_000_000)[:2] == ["quantize", "partition"]
    assert told(1_000_000_000) == [
        "quantize",
        "partition",
        "distribute",
        "embed on a GPU, or on several machines at once with a collection each",
    ]
    assert told(1_000_000, memory=1e9) == ["quantize", "partition"]


@pytest.mark.parametrize(("dim", "storage"), [(64, "halfvec"), (768, "halfvec"), (1024, "vector"), (256, "bit")])
def test_the_layout_is_that_of_postgres(
    connection: Connection, url: str, dim: int, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pages and by what is stored, within a twelfth and the pages that a table is extended by."""
    monkeypatch.setattr(measure, "MEASURABLE", 4000)
    connection.execute("select imgsearch.add_model('some', %s, 'timm', 'x', 'auto', %s)", [dim, storage])
    add_images(connection, 4000)
    with connect(url) as opened:
        stored = get_model(opened, "some")
    if storage == "bit":
        bits = np.random.default_rng(0).integers(0, 2, (4000, dim))
        with connection.cursor().copy(f"copy imgsearch.{stored.table_name} from stdin") as copy:  # type: ignore[call-overload]
            for number, row in enumerate(bits, 1):
                copy.write_row((number, "".join(map(str, row))))
    else:
        add_vectors(connection, stored.table_name, clustered(4000, dim))
    with connect(url) as opened:
        build_index(opened, stored, BuildOptions(256))
        rates = measure_rates(opened, planned_model(opened, "some"), remote=False, placement=None)
    assert rates.sources["disk"] == "4000 stored vectors"
    assert rates.table_row == pytest.approx(plan.table_row_bytes(index_spec(stored)), rel=1 / 12, abs=20 * 8192 / 4000)
    assert rates.index_row == pytest.approx(index_row_bytes(index_spec(stored), "hnsw"), rel=1 / 12)
    assert rates.trial_seconds > 0
    assert connection.execute("select to_regclass('imgsearch.plan_trial')").fetchone() == (None,)


def test_the_command_says_what_was_measured(cli: Callable[..., Any], photos: Any) -> None:
    told = json.loads(cli("--json", "plan", "--images", "1M", "-m", "dinov3", "--memory", "32").stdout)
    assert told["images"] == 1_000_000
    assert told["disk_gb"] == pytest.approx(told["table_gb"] + told["index_gb"] + told["image_rows_gb"], rel=1e-9)
    assert told["embedding_hours"] is None
    assert "--measure" in told["measured"]["embedding"]
    measured = json.loads(cli("--json", "plan", "--images", "1M", "-m", "palette", "--measure").stdout)
    assert measured["embedding_hours"] > 0
    assert cli("plan", "--images", "10 million").returncode == 2
    assert "unknown model" in cli("plan", "--images", "10", "-m", "nothing").stderr


@pytest.mark.parametrize(
    ("text", "count"), [("250000", 250_000), ("500k", 500_000), ("10M", 10**7), ("1.5B", 1_500_000_000)]
)
def test_counts_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "-5", "many", "1e6", "10 M", math.inf])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no number of images"):
        parse_count(str(text))
