"""Models in the database: what is stored of them, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import list_aliases
from pgimgsearch.embeddings.open_models import ModelRequest, defer_models
from pgimgsearch.embeddings.registry import open_model
from pgimgsearch.errors import ModelError
from pgimgsearch.ingest import run
from pgimgsearch.ingest.backfill import fill_stored
from pgimgsearch.models import lookup
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.sources.folder import folder_source
from tests.support.builders import add_model


@pytest.fixture
def two_resnets(tmp_path: Path) -> list[str]:
    import timm

    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / f"{seed}.pt")
        made.append(str(tmp_path / f"{seed}.pt"))
    return made


def test_other_weights_never_mix_with_those_stored(url: str, two_resnets: list[str]) -> None:
    first, second = two_resnets
    with connect(url) as connection:
        added = open_model(connection, "timm:resnet10t", Checkpoint(first))
        again = open_model(connection, "timm:resnet10t")
        assert again.stored.fingerprint == added.stored.fingerprint
        assert again.stored.weights == first
        with pytest.raises(ModelError, match="the weights differ") as raised:
            open_model(connection, "timm:resnet10t", Checkpoint(second))
        assert "models add" in str(raised.value.hint)


def test_an_alias_that_does_not_move_leaves_no_history(connection: Connection) -> None:
    for name in ("one", "two"):
        add_model(connection, name, 4)
    for name in ("one", "one", "two", "two", None, None):
        connection.execute("select imgsearch.set_alias('mine', %s)", [name])
    history = "select model_name from imgsearch.alias_history where alias = 'mine' order by history_id"
    assert [row[0] for row in connection.execute(history).fetchall()] == ["one", "two", None]


def test_add_show_alias_and_remove(cli: Callable[..., Any], connection: Connection, two_resnets: list[str]) -> None:
    added = cli("--json", "models", "add", "timm:resnet10t", "--weights", two_resnets[0], "--as", "Mine 1")
    assert '"table": "imgsearch.embedding_mine_1_512"' in added.stdout, added.stderr
    assert cli("models", "add", "timm:resnet10t", "--weights", two_resnets[0], "--as", "Mine 1").returncode == 2
    assert '"dim": 512' in cli("--json", "models", "show", "default").stdout
    cli("models", "add", "palette")
    assert list_aliases(connection) == {"default": "Mine 1", "text": "palette"}
    refused = cli("models", "remove", "Mine 1", "--yes")
    assert refused.returncode == 5
    assert "in use by alias default" in refused.stderr
    cli("models", "alias", "default", "palette")
    assert cli("models", "remove", "Mine 1", "--yes").returncode == 0
    assert connection.execute(
        "select to_regclass('imgsearch.embedding_mine_1_512'), to_regclass('imgsearch.images_mine_1')"
    ).fetchone() == (None, None)
    assert connection.execute(
        "select array_agg(model_name order by history_id) from imgsearch.alias_history where alias = 'default'"
    ).fetchone() == (["Mine 1", "palette"],)
    listed = cli("models", "list", "--all").stdout
    assert all(name in listed for name in lookup.names())


def test_names_that_collide_or_are_long_get_tables_of_their_own(connection: Connection) -> None:
    from tests.support.builders import add_model

    made = [add_model(connection, name, 8) for name in ("a-b", "a.b", "x" * 90, "x" * 91)]
    assert len({model.table_name for model in made}) == 4
    assert all(
        len(model.table_name) <= 63
        and connection.execute("select to_regclass(%s)", [f"imgsearch.{model.table_name}"]).fetchone() != (None,)
        for model in made
    )


def test_a_run_keeps_the_model_that_its_alias_meant_at_the_start(url: str, connection: Connection) -> None:
    for name in ("palette", "pdq"):
        open_model(connection, name)
    deferred = defer_models(url, ModelRequest(["default"]), [])
    connection.execute("select imgsearch.set_alias('default', 'pdq')")
    assert deferred.loaded is None
    assert [model.stored.name for model in deferred.load()] == ["palette"]


def test_loading_is_time_of_the_run_that_loads(url: str, connection: Connection, photos: Path) -> None:
    """Two sources share their models: the second run neither counts nor subtracts what the first loaded."""
    open_model(connection, "palette")
    deferred = defer_models(url, ModelRequest(["palette"]), [])
    reports = [run.ingest(url, folder_source(photos / part), deferred, run.Options(workers=1)) for part in ("a", "b")]
    assert ["load" in report.stages for report in reports] == [True, False]
    deferred.seconds = 1000.0  # of an earlier source
    assert run.ingest(url, folder_source(photos / "b"), deferred, run.Options(workers=1)).seconds > 0


def test_a_name_that_is_no_utf_8_is_read_again(ingest: Any, photos: Path, url: str, connection: Connection) -> None:
    """As it is stored, with escapes, it leads back to the file."""
    os.rename(photos / "a" / "00.png", os.fsencode(photos / "a") + b"/caf\xe9.png")  # noqa: PTH104
    ingest(photos, "palette")
    name, covered = fill_stored(url, open_model(connection, "pdq").stored.name, Checkpoint(), Placement(), max_load=1.0)
    assert (name, covered.embedded, covered.missing) == ("pdq", 12, 0)
